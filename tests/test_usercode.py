"""Losses, hint losses and codecs of a user's own, named by a file or a module."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import harness_process
import pytest
import torch
from harness_train import STUDENT, command, config, lines, make_cache, make_teacher, same, weights

from softcache.cache.reader import Cache
from softcache.codecs._open import open_codec, recorded_codec
from softcache.errors import CacheError, SoftcacheError, UsageError
from softcache.losses._terms import parse_term
from softcache.losses.hints._spec import parse_hint

OWN = '''
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from softcache.losses.hints import HintLoss


@dataclass(frozen=True)
class Mine:  # inherits nothing, so it declares everything
    """kl, written anew, with a factor."""

    factor: float = 1.0
    formula = "factor T² KL"
    source = "none"
    example = "--loss own.py:Mine"
    kinds = frozenset({"classes"})
    needs = frozenset()
    scope = "samples"
    through_softmax = True
    zero_for_perfect = True
    least_classes = 2
    standardizes = True
    standardized_weight = None
    default_T = 4.0
    default_alpha, default_beta = 0.9, 0.1
    default_weight = "1"

    def build(self, *, classes, seed):
        return None  # nothing is trained

    def target_T(self, T):
        return T

    def __call__(self, student, teacher, T, labels=None):
        s, t = F.log_softmax(student.float() / T, 1), F.log_softmax(teacher.float() / T, 1)
        return self.factor * T * T * F.kl_div(s, t, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Attention(HintLoss):
    """at, written anew."""

    power: int = 2
    formula = "mean (a(f_s) - a(f_t))²"
    source = "none"
    needs = frozenset({"maps"})
    default_weight = "1000"

    def build(self, student_shape, teacher_shape, **given):
        return Maps(self.power)


class Maps(nn.Module):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, student, teacher, **given):
        s, t = (F.normalize((f.float() ** self.power).mean(1).flatten(1), dim=1) for f in (student, teacher))
        return ((s - t) ** 2).mean()


@dataclass(frozen=True)
class Halves:
    """fp16, written anew, in two arrays."""

    first: int = 5

    def arrays(self, shape):
        return {"low": ("<f2", (self.first,)), "high": ("<f2", (shape[0] - self.first,))}

    def encode(self, logits):
        return {"low": logits[:, : self.first].half(), "high": logits[:, self.first :].half()}

    def decode(self, arrays):
        return torch.cat([arrays["low"].float(), arrays["high"].float()], 1)
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, and code of a user's own beside it."""
    folder = tmp_path_factory.mktemp("own")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=("layer2",))
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.fixture
def inside(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def trained(made: Path, out: Path, *arguments: str, cache: str = "cache") -> Path:
    quick = ("--epochs", "1", "--batch-size", "128", "--workers", "0", "--quiet")
    assert command("train", "--student", STUDENT, "--cache", made / cache, *quick[:-1], *arguments, "--out", out) == 0
    return out


def test_a_loss_of_ones_own_trains_to_the_bits_of_the_same_loss_that_is_installed(inside, tmp_path):
    theirs = trained(inside, tmp_path / "theirs", "--loss", "kl:T=2,weight=3")
    ours = trained(inside, tmp_path / "ours", "--loss", "own.py:Mine:T=2,weight=3")
    assert same(weights(ours), weights(theirs))
    assert config(ours)["losses"][0]["loss"] == f"python:{inside / 'own.py'}:Mine:factor=1,weight=3,T=2"


def test_a_module_is_named_by_its_path(inside, monkeypatch):
    monkeypatch.syspath_prepend(str(inside))
    term = parse_term("python:own:Mine:factor=2")
    assert str(term) == "python:own:Mine:factor=2"
    logits = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]])
    torch.testing.assert_close(term(*logits, 4.0), 2 * parse_term("kl")(*logits, 4.0))


@pytest.mark.parametrize(
    "spec", ["own.py:Mine", "own.py:Mine:factor=2", "python:own.py:Mine:weight=2", "own.py:Mine:T=8"]
)
def test_the_spec_of_a_term_gives_it_again_from_anywhere(inside, tmp_path, monkeypatch, spec):
    term = parse_term(spec)
    monkeypatch.chdir(tmp_path)
    again = parse_term(str(term))
    assert (str(again), again.weight, again.T, again.loss) == (str(term), term.weight, term.T, term.loss)


def test_a_hint_loss_of_ones_own_is_the_installed_one(inside, tmp_path):
    """Its optimization runs through the same numbers."""
    layers = "teacher=layer2,student=layer2"
    theirs = trained(inside, tmp_path / "theirs", "--hint", f"at:{layers}")
    ours = trained(inside, tmp_path / "ours", "--hint", f"own.py:Attention:{layers}")
    for one, other in zip(lines(theirs), lines(ours), strict=True):
        assert one["hint_loss"] == pytest.approx(other["hint_loss"], rel=1e-4)
    (hint,) = config(ours)["hints"]
    assert hint["hint"] == f"python:{inside / 'own.py'}:Attention:{layers},power=2"
    assert str(parse_hint(hint["hint"])) == hint["hint"]


LOSS = """
from dataclasses import dataclass
from softcache.losses import Loss
@dataclass(frozen=True)
class L(Loss):
    def __call__(self, student, teacher, T, labels=None):
        {body}
"""


@pytest.mark.parametrize(
    ("code", "spec", "says"),
    [
        ("", "own.py:L", r"own\.py has no 'L'"),
        ("", "own.py", r"'own\.py' names a file and no class in it: write own\.py:NAME"),
        ("", "gone.py:L", r"no file at .*gone\.py"),
        ("", "python:no_such_module_here:L", "no module is called 'no_such_module_here'"),
        ("def f(:", "own.py:L", r"own\.py can't be imported: SyntaxError"),
        ("raise KeyError('a\\nb')", "own.py:L", r"own\.py can't be imported: KeyError"),
        ("class L: pass", "own.py:L", "is no dataclass"),
        ("from dataclasses import dataclass\n@dataclass\nclass L: x: int = 1", "own.py:L", "is not frozen"),
        (
            "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass L: x: int = 1",
            "own.py:L",
            "lacks formula, source, example, scope, kinds, needs, .*, __call__: add what is missing, or inherit",
        ),
        (
            LOSS.partition("    def")[0] + "    default_T = 1.0",
            "own.py:L",
            r"lacks __call__: add what is missing, or inherit the defaults of softcache\.losses\.Loss",
        ),
        (
            LOSS.format(body="return student.sum()") + "    needs = frozenset({'label'})",
            "own.py:L",
            "needs 'label', which no training has: did you mean labels",
        ),
        (
            LOSS.format(body="return student.sum()") + "    kinds = frozenset({'logits'})",
            "own.py:L",
            "takes outputs of kind 'logits', which there is not",
        ),
        (
            LOSS.format(body="return student.sum()") + "    needs = 'maps'",
            "own.py:L",
            "needs must be a frozenset of labels",
        ),
        (
            "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass L:\n    x: 'Nothing' = 1",
            "own.py:L",
            "NameError: name 'Nothing' is not defined",
        ),
        (LOSS.format(body="return student.sum()"), "own.py:L:x=1", "has no option 'x'"),
        (LOSS.format(body="return student.nothing"), "own.py:L", "failed: AttributeError"),
        (LOSS.format(body="return student.sum(1)"), "own.py:L", r"must return a scalar tensor, returned shape \(2,\)"),
        (LOSS.format(body="return 3.0"), "own.py:L", "must return a scalar tensor, returned float"),
    ],
)
def test_what_is_wrong_with_a_loss_of_ones_own_is_one_line(here, code, spec, says):
    Path("own.py").write_text(code)
    with pytest.raises(UsageError, match=says) as caught:
        parse_term(spec)(torch.zeros(2, 3), torch.zeros(2, 3), 1.0)
    assert "\n" not in str(caught.value)


def test_a_loss_that_fails_in_training_ends_it_in_one_line(inside, tmp_path, capsys):
    (inside / "failing.py").write_text(LOSS.format(body="raise ValueError('of no use')"))
    arguments = ("--student", STUDENT, "--cache", "cache", "--workers", "0", "--out", tmp_path / "run")
    assert command("-q", "train", *arguments, "--loss", "failing.py:L") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"loss 'python:{inside / 'failing.py'}:L' failed: ValueError: of no use")


# -- codecs


@pytest.fixture
def own_cache(inside: Path, tmp_path: Path) -> Path:
    """A cache whose codec is code."""
    arguments = ("--teacher", "teacher", "--views", "2", "--size", "8", "--workers", "0")
    assert command("-q", "dump", *arguments, "--codec", "own.py:Halves:first=3", "--out", tmp_path / "coded") == 0
    return tmp_path / "coded"


def test_a_codec_of_ones_own_stores_what_the_installed_one_stores(own_cache, inside, tmp_path):
    arguments = ("--teacher", "teacher", "--views", "2", "--size", "8", "--workers", "0")
    assert command("-q", "dump", *arguments, "--codec", "fp16", "--out", tmp_path / "plain") == 0
    recorded = Cache(own_cache).manifest.state.columns["logits"].codec
    assert recorded.startswith("own.py:Halves:first=3 sha256=")
    rows = torch.arange(50).numpy()
    stored = []
    for cache in (Cache(own_cache, codec="own.py:Halves:first=3"), Cache(tmp_path / "plain")):
        column = cache.column("logits")
        stored.append(column.decode(column.gather(1, rows)))
    assert torch.equal(*stored)
    theirs = trained(tmp_path, tmp_path / "theirs", cache="plain")
    ours = trained(tmp_path, tmp_path / "ours", "--codec", "own.py:Halves:first=3", cache="coded")
    assert same(weights(ours), weights(theirs))


def test_no_code_is_run_because_a_cache_names_it(own_cache, inside, tmp_path, monkeypatch, capsys):
    """The file that the cache names lies in the current folder, and would show that it was run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTCACHE_STATE", str(tmp_path / "state"))  # that of another user, who didn't make the cache
    Path("own.py").write_text("open('was-run', 'w').close()\n" + OWN)
    student = ("--student", STUDENT, "--epochs", "1", "--workers", "0")
    for arguments in (
        ("train", *student, "--cache", "coded", "--out", "run"),
        ("dump", "--teacher", inside / "teacher", "--views", "3", "--size", "8", "--out", "coded"),
        ("verify", "coded"),
        ("verify", "coded", "--repair"),
    ):
        capsys.readouterr()
        assert command(*arguments) == 1, arguments
        said = capsys.readouterr().err
        assert "no code that is named only in a cache: if you trust it, pass --codec own.py:Halves:first=3" in said
    assert not Path("run").exists()
    assert command("info", "coded", "--json") == 0
    assert json.loads(capsys.readouterr().out)["columns"]["logits"]["codec"].startswith("own.py:Halves:first=3 sha256=")
    assert not Path("was-run").exists()
    # named by the user it is run, and found to be other code
    assert command("verify", "coded", "--codec", "own.py:Halves:first=3") == 1
    assert "the code has changed since the dump" in capsys.readouterr().err


def test_a_codec_is_named_again_from_another_place(own_cache, inside, tmp_path, monkeypatch, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(inside / "own.py", elsewhere)
    monkeypatch.chdir(elsewhere)
    named = ("--codec", "own.py:Halves:first=3")
    assert command("verify", own_cache, *named) == 0
    more = (
        "dump",
        "--teacher",
        inside / "teacher",
        "--size",
        "8",
        "--workers",
        "0",
        "--views",
        "3",
        "--out",
        own_cache,
    )
    assert command(*more, *named) == 0
    assert command("verify", own_cache, *named) == 0
    for other in ("own.py:Halves:first=4", "fp16"):
        capsys.readouterr()
        assert command(*more, "--codec", other) == 1
        assert re.search(r"(made with|is there as classes in) own\.py:Halves:first=3", capsys.readouterr().err)
    with pytest.raises(CacheError, match=r"the cache was made with own\.py:Halves:first=3"):
        Cache(own_cache, codec="own.py:Halves")


def test_verify_runs_the_teacher_through_a_codec_of_ones_own(own_cache, inside):
    assert command("verify", own_cache, "--teacher", "teacher", "--codec", "own.py:Halves:first=3") == 0


CODEC = """
from dataclasses import dataclass
import torch
@dataclass(frozen=True)
class C:
    def arrays(self, shape):
        return {arrays}
    def encode(self, logits):
        return {encode}
    def decode(self, arrays):
        return {decode}
"""
GOOD = {"arrays": '{"v": ("<f4", shape)}', "encode": '{"v": logits}', "decode": 'arrays["v"]'}


def coded_and_decoded(spec: str) -> torch.Tensor:
    codec = open_codec(spec)
    return codec.decode(codec.encode(torch.zeros(2, 3)))


@pytest.mark.parametrize(
    ("replaced", "says"),
    [
        ({"arrays": "3"}, "failed: AttributeError"),
        ({"arrays": "{}"}, "names no array"),
        ({"arrays": '{"a/b": ("<f4", shape)}'}, "which can't be stored"),
        ({"arrays": '{"v": ("O", shape)}'}, "which can't be stored"),
        ({"encode": '{"w": logits}'}, "encode.. gave samples of .*, arrays.. says"),
        ({"encode": '{"v": logits[:, :2]}'}, "encode.. gave samples of .*, arrays.. says"),
        ({"encode": "logits.nothing"}, "failed: AttributeError"),
        ({"decode": 'arrays["v"][:1]'}, r"decode.. must give values \(B, …\) of 2 samples, gave \(1, 3\)"),
    ],
)
def test_what_is_wrong_with_a_codec_of_ones_own_is_one_line(here, replaced, says):
    Path("own.py").write_text(CODEC.format(**{**GOOD, **replaced}))
    with pytest.raises(UsageError, match=says) as caught:
        coded_and_decoded("own.py:C")
    assert "\n" not in str(caught.value)


def test_a_class_that_is_no_codec_says_what_it_lacks(here):
    Path("own.py").write_text("from dataclasses import dataclass\n@dataclass(frozen=True)\nclass C: x: int = 1")
    with pytest.raises(SoftcacheError, match="lacks arrays, encode, decode"):
        recorded_codec("own.py:C")


def test_the_names_of_installed_components_stay_as_they_were():
    assert recorded_codec("fp16") == "fp16"


def test_help_and_the_table_of_losses_import_no_code_of_ones_own(here):
    (here / "own.py").write_text("open('was-run', 'w').close()")
    done = harness_process.run([sys.executable, "-m", "softcache", "losses"], capture_output=True)
    assert done.returncode == 0
    assert not (here / "was-run").exists()


def test_losses_of_ones_own_are_described(inside, capsys):
    assert command("losses", "own.py:Mine") == 0
    page = capsys.readouterr().out
    assert "formula         factor T² KL\n" in page
    assert "options         factor=1\n" in page
    assert "default T       4\n" in page
    assert "command         softcache train --loss own.py:Mine\n" in page
    assert page.endswith("\nkl, written anew, with a factor.\n")
    assert command("losses", "own.py:Attention", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["needs"], row["weight"]) == ("hint", "maps", "1000")
    assert row["command"] == "softcache train --hint own.py:Attention:teacher=LAYER,student=LAYER"


def test_a_loss_of_ones_own_without_a_text_is_described(here, capsys):
    (here / "bare.py").write_text(LOSS.format(body="return student.sum()"))
    assert command("losses", "bare.py:L") == 0
    assert capsys.readouterr().out == (
        "option          --loss bare.py:L\noptions         none beside those of every loss\nneeds           classes\n"
        "scope           samples (a mean over samples)\ndefault weight  1\nalpha, beta     1, 1\n"
        "command         softcache train --loss bare.py:L\n"
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own.py", "names a file and no class in it"),
        ("gone.py:L", "no file at"),
        ("own.py:Mine:factor=2", "'own.py:Mine:factor=2' has options: leave them out"),
        ("own.py:Halves", "lacks formula"),
        ("own.py:nn", "is no dataclass"),
    ],
)
def test_what_is_no_loss_is_not_described(inside, capsys, name, says):
    assert command("losses", name) == 2
    assert says in capsys.readouterr().err
