"""Temperature rules, one file a family, and the published methods that are made of them.

Inside: `table` names every rule in `RULES`, `published_methods` names every method, `sharpness`, `difficulty`,
    `schedules` and `curriculum` are families of rules.
To extend: write a factory, enter it into `RULES`, and give it one test that is worked by hand (docs/add-a-rule.md).
Imports: `kd` and below.
Imported by: every package above, `models` and `policy` among them.
"""
