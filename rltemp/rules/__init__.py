"""Temperature rules, one file a family, and the published methods made of them.

To add a rule: write a factory, enter it into `RULES` and give it one hand-worked test (docs/add-a-rule.md). Imports
`kd` and below; everyone above may import it.
"""
