"""Every check of a policy file by a file that fails it, and nothing else.

`forge` writes whatever manifest, tensor entries and bytes a test asks for, with hashes that fit: so a refusal
is that of the check under test and not of an earlier one.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support import hostile
from support.data import table
from support.policy_files import FEATURES, KNOWN, compact, fields, forge, make_weights, manifest_of, pack, unpack
from torch import nn

from rltemp.errors import ArtifactRefusedError, BadInputError
from rltemp.policy import policy_bytes, policy_file
from rltemp.policy.manifest import strict_json
from rltemp.policy.policy_file import forward, read_policy, write_policy

torch.set_num_threads(1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_policy(tmp_path / "policy.safetensors", **fields())
    return tmp_path / "policy.safetensors"


def refusal(path: Path, **options: Any) -> str:
    """The message with which the file is refused, after checking that it is one line that names the file."""
    with pytest.raises(ArtifactRefusedError) as caught:
        read_policy(path, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) <= 2000
    assert message.startswith(f"policy file {path.name}: ")
    return message


def best_seconds(call: Callable[[], object]) -> float:
    """Processor time of the fastest of five calls: the machine may be busy with something else."""
    seconds = []
    for _ in range(5):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return min(seconds)


# What a good file does


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("widths", [(3, 2), (3, 16, 2), (3, 16, 8, 2), (3, 4, 5, 6, 2)])
def test_a_policy_comes_back_with_the_same_outputs(tmp_path: Path, widths: tuple[int, ...], activation: str) -> None:
    weights = make_weights(*widths)
    observation = torch.randn(5, 7, 3)
    sha256 = write_policy(tmp_path / "p", **fields(weights=weights, activation=activation))
    policy = read_policy(tmp_path / "p", KNOWN)
    assert policy.sha256 == sha256
    assert policy.manifest.features == FEATURES
    assert policy.manifest.layers == tuple(pairwise(widths))
    assert policy.manifest.provenance == {"task": "digits", "seed": 7, "gain": 0.0056}
    actions = forward(policy.weights, policy.manifest.activation, observation)
    assert actions.shape == (5, 7, 2)
    torch.testing.assert_close(actions, forward(weights, activation, observation), rtol=0, atol=1e-6)


def test_the_network_is_torchs_and_worked_by_hand() -> None:
    weights = make_weights(3, 8, 2)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    network.load_state_dict({f"{2 * int(name[0])}{name[1:]}": tensor for name, tensor in weights.items()})
    observation = torch.randn(11, 3)
    torch.testing.assert_close(forward(weights, "tanh", observation), network(observation))
    first = {"0.weight": torch.tensor([[1.0, -1.0]]), "0.bias": torch.tensor([0.5])}
    second = {"1.weight": torch.tensor([[2.0], [-3.0]]), "1.bias": torch.tensor([0.0, 1.0])}
    # relu(3 - 1 + 0.5) = 2.5 and relu(0 - 1 + 0.5) = 0
    actions = forward(first | second, "relu", torch.tensor([[3.0, 1.0], [0.0, 1.0]]))
    assert actions.tolist() == [[5.0, -6.5], [0.0, 1.0]]


def test_the_same_policy_gives_the_same_bytes_in_any_order_type_and_layout(tmp_path: Path) -> None:
    weights = make_weights(3, 16, 2)
    changed = {name: nn.Parameter(tensor.double()) for name, tensor in weights.items()}
    changed["0.weight"] = nn.Parameter(weights["0.weight"].double().T.contiguous().T)
    backwards = dict(reversed(weights.items()))
    for name, given in (("a", weights), ("b", weights), ("backwards", backwards), ("other types", changed)):
        write_policy(tmp_path / name, **fields(weights=given))
    write_policy(tmp_path / "other", **fields(reference="fixed:5"))
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 2


def test_any_safetensors_reader_opens_the_file(path: Path) -> None:
    with safe_open(path, framework="np") as file:
        assert sorted(file.keys()) == ["0.bias", "0.weight", "1.bias", "1.weight"]
        np.testing.assert_array_equal(file.get_tensor("0.weight"), make_weights(3, 16, 2)["0.weight"].numpy())
        assert json.loads(file.metadata()["rltemp"])["reference"] == "fixed:4"


def test_an_older_minor_and_a_newer_minor_without_new_fields_load(path: Path) -> None:
    forge(path, {**manifest_of(path), "format_version": "1.7"})
    assert read_policy(path).manifest.format_version == "1.7"


def test_a_file_of_the_first_format_gives_what_numpy_gives(tmp_path: Path) -> None:
    """Case 6: format 1.0 had neither `weight_ratio` nor `balanced`."""
    weights = {
        "0.weight": torch.linspace(-1, 1, 48).view(16, 3),
        "0.bias": torch.linspace(-0.5, 0.5, 16),
        "1.weight": torch.linspace(1, -1, 32).view(2, 16),
        "1.bias": torch.tensor([0.25, -0.25]),
    }
    write_policy(tmp_path / "p", **fields(weights=weights))
    manifest = manifest_of(tmp_path / "p")
    del manifest["action"]["weight_ratio"], manifest["action"]["balanced"]
    forge(tmp_path / "p", {**manifest, "format_version": "1.0"})
    old = read_policy(tmp_path / "p", KNOWN)
    assert (old.manifest.action.size, old.manifest.action.balanced) == (2, False)
    found = forward(old.weights, old.manifest.activation, torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]]))
    # np.tanh(x @ w0.T + b0) @ w1.T + b1 of the same numbers, in double precision
    golden = torch.tensor([[-2.90566843, -3.90010267], [-1.13600406, -1.63600406]])
    torch.testing.assert_close(found, golden, rtol=0, atol=1e-5)


def test_the_versions_are_filled_in_where_none_are_given(tmp_path: Path) -> None:
    given = fields()
    del given["created_with"]
    write_policy(tmp_path / "p", **given)
    assert read_policy(tmp_path / "p").manifest.created_with["numpy"] == np.__version__


# What cannot be written


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights": {}}, "weights must be"),
        ({"weights": {"0.weight": torch.ones(2, 3)}}, "weights must be"),
        ({"weights": {**make_weights(3, 2), "log_std": torch.ones(2)}}, "log_std"),
        ({"weights": {"0.weight": torch.ones(2, 3), "0.bias": torch.ones(3)}}, "weights must be"),
        ({"weights": {"0.weight": torch.ones(2, 0), "0.bias": torch.ones(2)}}, "weights must be"),
        ({"weights": make_weights(3, 4)}, "weights must be"),
        ({"weights": {**make_weights(3, 5, 2), "1.weight": torch.ones(2, 4)}}, "weights must be"),
        ({"weights": make_weights(4, 2)}, "3 features"),
        ({"weights": make_weights(3, 4, 4, 4, 4, 2)}, "layers"),
        ({"weights": make_weights(3, 1025, 2)}, "layers"),
        ({"weights": make_weights(3, 1024, 1024, 1024, 2)}, "is over 8388608 bytes"),
        ({"weights": {name: tensor * float("nan") for name, tensor in make_weights(3, 2).items()}}, "nan"),
        ({"weights": {name: tensor * 1e6 for name, tensor in make_weights(3, 2).items()}}, "below 1000"),
        ({"activation": "gelu"}, "unknown activation 'gelu'"),
        ({"reference": "../../etc/passwd"}, "reference"),
        ({"reference": "os:system"}, "reference"),
        ({"self_test_seed": -1}, "eed"),
        ({"provenance": {"note": "x" * 513}}, "provenance"),
        ({"provenance": {"note": True}}, "provenance"),
        ({"provenance": {str(index): index for index in range(65)}}, "provenance"),
        ({"provenance": {f"{index:0400d}": "é" * 512 for index in range(64)}}, "manifest has"),
        ({"features": tuple(FEATURES[0].model_copy(update={"name": f"f{i}"}) for i in range(1024)),
          "weights": make_weights(1024, 2)}, "manifest has"),
    ],
)  # fmt: skip
def test_what_could_not_be_read_is_not_written(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInputError, match=r"^cannot write policy file p: ") as caught:
        write_policy(tmp_path / "p", **fields(**change))
    assert named in str(caught.value)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "good",
    [
        "fixed",
        "fixed:4",
        "fixed:1e-3",
        "dtkd:reference=2",
        "dtkd:reference=2,ce_weight=0.1,kd_weight=0.9,plain_kd_weight=0,warmup=0",
        "atkd:a=b,c=-1",
    ],
)
def test_a_reference_is_a_methods_name_with_options(tmp_path: Path, good: str) -> None:
    write_policy(tmp_path / "p", **fields(reference=good))
    assert read_policy(tmp_path / "p").manifest.reference == good


# Files that are no policy


def test_a_missing_file_is_bad_input_and_not_a_refusal(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "no\nlines", tmp_path / "a" / "b"):
        with pytest.raises(BadInputError, match="does not exist") as caught:
            read_policy(path)
        assert not isinstance(caught.value, ArtifactRefusedError)
        assert str(caught.value).isprintable()


def test_folders_empty_files_devices_and_unreadable_files_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not a regular file" in refusal(path.parent)
    assert "not a regular file" in refusal(Path("/dev/zero"))
    (path.parent / "empty").touch()
    assert "has 0 bytes" in refusal(path.parent / "empty")
    monkeypatch.setattr("builtins.open", Mock(side_effect=PermissionError(13, "Permission denied")))
    assert "cannot be read (Permission denied)" in refusal(path)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_refused_by_name_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(hostile.Payload(tmp_path / "marker"), protocol))
    known = "is a pickle, which can run code when loaded" if protocol >= 2 else "claims a header"
    assert known in refusal(tmp_path / "p.pkl")
    assert not (tmp_path / "marker").exists()


def test_an_archive_is_refused_by_name_before_its_members_are_read(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    archive = hostile.sb3_archive(marker, pickle.dumps(hostile.Payload(marker)), large=bytes(9 * 2**20))
    for data in (archive, hostile.torch_file(make_weights(3, 2))):
        (tmp_path / "model.zip").write_bytes(data)
        message = refusal(tmp_path / "model.zip")
        assert "is a Stable-Baselines3 archive, which can run code when loaded" in message
        assert "rltemp train-policy" in message
    assert not marker.exists()


def test_a_header_with_a_length_like_the_mark_of_a_pickle_is_read(tmp_path: Path) -> None:
    note = 0
    while True:
        write_policy(tmp_path / "p", **fields(provenance={"note": "x" * note}))
        if (tmp_path / "p").read_bytes()[0] == 0x80:
            break
        note += 1
    assert read_policy(tmp_path / "p").manifest.provenance["note"] == "x" * note


# Damage


def assert_flipped_bits_are_refused(path: Path, bits: Iterable[int]) -> None:
    data = path.read_bytes()
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        refusal(path)


def test_every_single_flipped_bit_is_refused(path: Path) -> None:
    chosen = random.Random(0).sample(range(8 * path.stat().st_size), 300)
    assert_flipped_bits_are_refused(path, [*range(64), *chosen])


@pytest.mark.faults
def test_each_of_three_thousand_flipped_bits_is_refused(path: Path) -> None:
    assert_flipped_bits_are_refused(path, random.Random(1).sample(range(8 * path.stat().st_size), 3000))


def test_a_flipped_bit_in_weights_or_manifest_says_which_sum_is_wrong(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "SHA-256 mismatch of the weights" in refusal(path)
    path.write_bytes(data.replace(b"digits", b"digitt"))
    assert "SHA-256 mismatch of the manifest" in refusal(path)


def test_a_truncated_file_is_refused_wherever_it_ends(path: Path) -> None:
    data = path.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        refusal(path)


def test_bytes_too_few_too_many_or_written_in_another_way_are_refused(path: Path) -> None:
    data = path.read_bytes()
    header, _, body = unpack(data)
    over = data + bytes(policy_bytes.MAX_FILE_BYTES)
    for changed, named in (
        (data[:-1], "bytes of weights"),
        (data + b"\0", "bytes of weights"),
        (pack(json.dumps(header), body), "not written as rltemp writes it"),
        (over, "is over 8388608 bytes"),
    ):
        path.write_bytes(changed)
        assert named in refusal(path)


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("self_test", "seed"), 1, "self-test 0 gives"),
        (("self_test", "expected", 3), [0.0, 0.0, 0.5], "self-test 3 gives"),  # by fuzzing: rows of 2 and 3 are allowed
        (("activation",), "relu", "self-test 0 gives"),
    ],
)
def test_a_manifest_of_another_function_is_noticed_by_the_outputs(
    path: Path, keys: tuple[Any, ...], value: Any, named: str
) -> None:
    manifest = place = manifest_of(path)
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    forge(path, manifest)
    assert named in refusal(path)


def test_the_self_test_notices_a_change_of_the_running_code(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policy_file.ACTIVATIONS, "tanh", lambda hidden: torch.tanh(1.001 * hidden))
    assert "self-test" in refusal(path)


# Hostile headers


@pytest.mark.parametrize("length", [2**17 + 4097, 2**32, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_claims_to_be_huge_is_refused_at_once(tmp_path: Path, length: int) -> None:
    (tmp_path / "p").write_bytes(struct.pack("<Q", length) + b'{"a":1}' + bytes(2**19))
    assert f"claims a header of {length} bytes" in refusal(tmp_path / "p")
    assert best_seconds(lambda: refusal(tmp_path / "p")) < 0.1


@pytest.mark.parametrize(
    "header",
    [
        "[" * 2**17,
        '{"a":' * 2**14,
        "[[]" + ",[]" * 2**15 + "]",
        '"' + '\\"' * 2**16,
        '"' * 2**17,
        "\\" * 2**17,
        "9" * 2**17,
        "1e" + "9" * 2**17,
        "{" + ",".join(f'"{i}":{i}' for i in range(10**4)) + "}",
        '{"__metadata__":{"rltemp":"' + "[" * 2**17 + '"}}',
    ],
)
def test_hostile_json_is_refused_in_a_tenth_of_a_second(tmp_path: Path, header: str) -> None:
    (tmp_path / "p").write_bytes(pack(header))
    assert "claims a header" not in refusal(tmp_path / "p")
    assert best_seconds(lambda: refusal(tmp_path / "p")) < 0.1


@pytest.mark.parametrize(
    ("header", "named"),
    [
        (b"\xff\xfe{}", "not strict JSON"),
        (b'{"__metadata__": {"rltemp": "' + b"x" * 65537 + b'"}}', "manifest has 65537 characters"),
        *table("policy/refused", "headers"),
    ],
)
def test_a_header_that_is_not_ours_is_refused_by_its_first_fault(
    tmp_path: Path, header: str | bytes, named: str
) -> None:
    (tmp_path / "p").write_bytes(pack(header))
    assert named in refusal(tmp_path / "p")


def test_brackets_inside_strings_are_not_counted_as_depth() -> None:
    assert strict_json('{"[[[[[[[[[[": "\\"[[[[[[[[["}', "it") == {"[[[[[[[[[[": '"[[[[[[[[['}
    assert strict_json("[[[[[[[[1]]]]]]]]", "it") == [[[[[[[[1]]]]]]]]


@pytest.mark.parametrize(("name", "change"), table("policy/refused", "tensors"))
def test_a_lie_about_a_tensor_is_refused(path: Path, name: str, change: dict[str, Any] | None) -> None:
    header, manifest, _ = unpack(path.read_bytes())
    tensors = {key: entry for key, entry in header.items() if key not in ("__metadata__", None if change else name)}
    if change:
        tensors[name] = {**tensors.get(name, {}), **change}
    forge(path, manifest, tensors)
    assert "not written as rltemp writes it" in refusal(path)


def test_layers_that_claim_more_than_the_file_holds_are_refused_unread(path: Path) -> None:
    forge(path, {**manifest_of(path), "layers": [[3, 1024], [1024, 2]]})
    assert "bytes of weights, its layers need" in refusal(path)


@pytest.mark.parametrize(("value", "named"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "inf"), (-1000.0, "1000")])
def test_weights_that_are_not_finite_or_too_big_are_refused(path: Path, value: float, named: str) -> None:
    _, manifest, body = unpack(path.read_bytes())
    forge(path, manifest, body=body[:-4] + struct.pack("<f", value))
    assert f"tensor '1.weight' holds {named}" in refusal(path)


# The manifest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": [[3, 10**400], [10**400, 2]]}, "manifest layers.0.1:"),
        ({"action": {"ratio": 10**400, "minimum": 1.0, "maximum": 2.0}}, "action.ratio"),
        ({"provenance": {"a": 10**400}}, "manifest provenance.a"),
        *table("policy/refused", "manifests"),
    ],
)
def test_a_manifest_that_breaks_the_schema_is_refused_by_the_field(path: Path, change: Any, named: str) -> None:
    changed = {**manifest_of(path), **change}
    forge(path, {key: value for key, value in changed.items() if value is not None})
    assert named in refusal(path)


def test_a_manifest_without_the_name_of_its_format_has_it(path: Path) -> None:
    forge(path, {key: value for key, value in manifest_of(path).items() if key != "format"})
    assert read_policy(path).manifest.format == "rltemp-policy"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        *(('"std":0.25', f'"std":{std}', "manifest") for std in ("0.0", "-1.0", "5e-324", "1e999", "NaN", "null")),
        ('"ratio":4.0', '"ratio":4.0,"ratio":2.0', "key 'ratio' is given twice"),
    ],
)
def test_a_manifest_of_other_text_is_refused(path: Path, old: str, new: str, named: str) -> None:
    forge(path, compact(manifest_of(path)).replace(old, new))
    assert named in refusal(path)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "1", "[" * 60000, "{}", '"\ud800"'.encode("ascii", "backslashreplace").decode()],
)
def test_a_manifest_that_is_no_object_of_ours_is_refused(path: Path, text: str) -> None:
    forge(path, text)
    assert "manifest" in refusal(path)


def test_a_newer_format_names_both_versions_and_the_remedy(path: Path) -> None:
    forge(path, {**manifest_of(path), "format_version": "3.0", "from_the_future": [1]})
    assert "format 3.0, this rltemp reads up to 1.x: pip install -U rltemp" in refusal(path)
    forge(path, {**manifest_of(path), "format_version": "1.4"})
    assert refusal(path).endswith("pip install -U rltemp")


# The features of the running code


def test_features_that_the_running_code_computes_otherwise_are_listed(path: Path) -> None:
    known = {"progress": (1, "fraction"), "entropy": (3, "nats")}
    message = refusal(path, known_features=known)
    assert "1: entropy v2 [nats] in policy, v3 [nats] here" in message
    assert "2: margin v1 [deviations] in policy, unknown here" in message
    assert "progress" not in message
    assert "0.1.0" in message
    known = {**KNOWN, "entropy": (2, "bits")}
    assert "1: entropy v2 [nats] in policy, v2 [bits] here" in refusal(path, known_features=known)


def test_features_in_another_order_are_another_spec(path: Path) -> None:
    manifest = manifest_of(path)
    manifest["features"].reverse()
    forge(path, manifest)
    assert "feature_spec_sha256" in refusal(path)


def test_nothing_is_opened_but_the_file_itself(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Mock(side_effect=io.open)
    monkeypatch.setattr(io, "open", watch)
    monkeypatch.setattr("builtins.open", watch)
    read_policy(path)
    assert [str(call.args[0]) for call in watch.call_args_list] == [str(path)]
