"""Files of weights that were made to harm: one clear line each, in bounded memory, whatever they say of themselves."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness_process
import pytest
import torch

from softcache.cli._main import run
from softcache.errors import ModelError
from softcache.models._checkpoint import METADATA_KEY, load_state
from softcache.models._source import file_weights

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}
BYTES = 1 << 30


def saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def repacked(content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", method) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    return stream.getvalue()


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return stream.getvalue()


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"epoch": 3}
    for _ in range(depth):
        inner = {"model": inner}
    return inner


def pickled_nest(depth: int) -> bytes:
    """``{"model": {"model": …}}`` without pickle's own recursion."""
    body = b"\x80\x02" + b"}X\x05\0\0\0model" * depth + b"}" + b"s" * depth + b"."
    return archive(x__data_pkl=body, x__version=b"3\n")


def holding_itself() -> bytes:
    state: dict[str, Any] = {"epoch": 1}
    state["state_dict"] = state["model"] = state
    return saved(state)


def all_ways() -> bytes:
    """Fourteen names for the same dictionary on each of twelve levels: 14 ** 12 paths."""
    names = ["state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params"]
    level: dict[str, Any] = {"epoch": 1}
    for _ in range(12):
        level = dict.fromkeys(names, level)
    return saved(level)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "deflated zeros": (lambda: repacked(saved({"weight": torch.zeros(2**26)})), "unpacks to 268,"),
    "a repeated element": (lambda: saved({"weight": torch.zeros(1).expand(2**40)}), "tensors of 4,398,046,511,104"),
    "bytearray": (
        lambda: archive(
            x__data_pkl=b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (10**10).to_bytes(5, "little") + b"\x85R.",
            x__version=b"3\n",
        ),
        "holds a bytearray",
    ),
    "bytearray of old": (
        lambda: (
            b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
            + b"\x80\x02cbuiltins\nbytearray\n\x8a\x05"
            + (10**10).to_bytes(5, "little")
            + b"\x85R."
        ),
        "holds a bytearray",
    ),
    "an archive of an archive": (lambda: archive(inner_pt=saved(STATE)), "not a state dict of tensors .* inner_pt"),
    "an archive of itself": (lambda: repacked(archive(x_pt=archive(x_pt=saved(STATE)))), "not a state dict of tensors"),
    "itself": (holding_itself, r"has no state dict.*it holds the keys 'epoch', 'state_dict', 'model'"),
    "a hundred levels": (lambda: saved(nested(100)), "has no state dict.*it holds the keys 'model'"),
    "a hundred thousand levels": (lambda: pickled_nest(10**5), "has no state dict|damaged"),
    "many ways to nothing": (all_ways, "has no state dict"),
    "a list": (lambda: saved([1, 2]), "it holds one list"),
    "a tensor": (lambda: saved(torch.ones(3)), "it holds one Tensor"),
    "nothing": (lambda: saved({}), "it holds an empty dictionary"),
    "no values": (lambda: saved({"weight": torch.empty(3, device="meta")}), "not a dense tensor"),
    "sparse": (lambda: saved({"weight": torch.eye(3).to_sparse()}), "not a dense tensor|damaged|holds more"),
    "a program": (
        lambda: archive(x__data_pkl=b"\x80\x02}.", x__constants_pkl=b"\x80\x02).", x__version=b"3\n"),
        "TorchScript",
    ),
}


HEAVY = ("deflated zeros", "a repeated element", "bytearray", "bytearray of old", "many ways to nothing")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_checkpoint_that_is_none_is_one_line_in_bounded_memory(name: str, tmp_path: Path) -> None:
    make, message = HOSTILE[name]
    path = tmp_path / "x.pt"
    path.write_bytes(make())
    with pytest.raises(ModelError, match=message) as caught:
        load_state(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))
    if sys.platform == "linux" and name in HEAVY:
        assert in_a_gibibyte(path) == f"ModelError: {caught.value}"


def in_a_gibibyte(path: Path) -> str:
    """What loading a file says in a process that has no more memory than its imports take and 1 GiB."""
    code = (
        "import resource, sys\nfrom softcache.errors import ModelError\n"
        "from softcache.models._checkpoint import load_state\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (used + {BYTES}, used + {BYTES}))\n"
        "try:\n    load_state(sys.argv[1])\nexcept ModelError as error:\n    print('ModelError:', error)"
    )
    done = harness_process.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_parameters_that_were_compressed_or_are_shared_are_read(tmp_path: Path) -> None:
    tied = {**STATE, "tied": STATE["weight"]}
    for content in (repacked(saved(tied)), repacked(saved(tied), zipfile.ZIP_STORED), saved(tied)):
        (tmp_path / "x.pt").write_bytes(content)
        found = load_state(tmp_path / "x.pt")
        assert found.keys() == tied.keys()
        assert all(torch.equal(found[key], tied[key]) for key in tied)


def test_a_state_dict_beneath_many_levels_is_found(tmp_path: Path) -> None:
    level: dict[str, Any] = STATE
    for name in ("module", "ema", "model", "net") * 10:
        level = {name: level, "epoch": 1}
    torch.save(level, tmp_path / "x.pt")
    assert load_state(tmp_path / "x.pt").keys() == STATE.keys()


def safetensors(header: bytes, data: bytes = b"\0" * 24) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def with_metadata(text: str) -> bytes:
    """A sound file whose description of its network is ``text``."""
    tensor = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    return safetensors(json.dumps({"__metadata__": {METADATA_KEY: text}, "weight": tensor}).encode())


HEADERS: dict[str, bytes] = {
    "empty": safetensors(b""),
    "no JSON": safetensors(b"hello"),
    "a list": safetensors(b"[1]"),
    "deep": safetensors(b"[" * 500_000 + b"]" * 500_000),
    "deep objects": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "another dtype": safetensors(b'{"w":{"dtype":"X9","shape":[6],"data_offsets":[0,24]}}'),
    "another shape": safetensors(b'{"w":{"dtype":"F32","shape":[7],"data_offsets":[0,24]}}'),
    "a huge shape": safetensors(b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,24]}}'),
    "beyond the end": safetensors(b'{"w":{"dtype":"F32","shape":[60],"data_offsets":[0,240]}}'),
    "a huge number": safetensors(b'{"w":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,24]}}'),
    "not UTF-8": safetensors(b'{"\xff":1}'),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_header_that_is_none_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADERS[name])
    for read in (load_state, file_weights):
        with pytest.raises(ModelError, match=r"x\.safetensors can't be read as safetensors") as caught:
            read(path)
        assert "\n" not in str(caught.value)


METADATA: dict[str, str] = {
    "empty": "",
    "no JSON": "hello",
    "a list": "[1]",
    "deep": "[" * 500_000 + "]" * 500_000,
    "NaN": '{"classes": NaN}',
    "a huge number": '{"classes": ' + "9" * 100_000 + "}",
    "nothing in it": "{}",
    "no classes": '{"preprocess": {"mean": [0], "std": [1]}}',
    "classes beyond every float": '{"preprocess": {"mean": [0], "std": [1]}, "classes": 1e999}',
    "classes of another type": '{"preprocess": {"mean": [0], "std": [1]}, "classes": [3]}',
    "preprocessing of another type": '{"preprocess": 3, "classes": 10}',
    "a mean of another type": '{"preprocess": {"mean": 3, "std": [1]}, "classes": 10}',
}


@pytest.mark.parametrize("name", METADATA)
def test_a_description_that_is_none_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(with_metadata(METADATA[name]))
    assert load_state(path).keys() == {"weight"}
    with pytest.raises(ModelError) as caught:
        file_weights(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


CONFIGS: dict[str, bytes] = {
    "deep": b"[" * 500_000 + b"]" * 500_000,
    "deep objects": b'{"a":' * 500_000 + b"1" + b"}" * 500_000,
    "a huge number": b'{"version": ' + b"9" * 100_000 + b"}",
    "NaN": b'{"version": NaN}',
    "a list": b"[1]",
    "text": b'"version"',
    "not UTF-8": b'{"version": "\xff"}',
    "a model of another type": b'{"version": 1, "model": 3}',
    "weights of another type": b'{"version": 1, "model": {"weights": 3}}',
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("command", ["eval ./run", "train --resume ./run", "layers --teacher ./run"])
def test_a_folder_whose_configuration_is_none_is_one_line(
    command: str, name: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "run").mkdir()
    (here / "run" / "config.json").write_bytes(CONFIGS[name])
    assert run(command.split()) == 1
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("softcache: run/config.json")
    assert len(said[0]) < 400
