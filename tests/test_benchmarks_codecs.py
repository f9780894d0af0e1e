"""The benchmark of codecs: schemes of others against closed forms, what is measured, caches that differ in their codec,
and a run on made data."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("scipy", reason="needs scipy, of the extra [bench]")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import codecs, codecs_losses, codecs_measure  # noqa: E402
from benchmarks.codecs_caches import recoded  # noqa: E402
from benchmarks.codecs_losses import Seen  # noqa: E402
from benchmarks.codecs_measure import Codec, PeerCodec  # noqa: E402
from benchmarks.codecs_peers import BUDGET, RECOMMENDED, FlatTail, Polynomial, Sampled  # noqa: E402
from benchmarks.codecs_rows import NEEDED  # noqa: E402
from benchmarks.codecs_schemes import for_classes, for_values  # noqa: E402
from benchmarks.rows import recorded  # noqa: E402
from softcache import Cache, dump  # noqa: E402
from softcache.stages.verify import verify  # noqa: E402

TEACHER = """
from torch import nn

def make(num_classes=60):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))
"""


def logits(rows: int, classes: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(0))


# -- schemes of others


@pytest.mark.parametrize("wide", [False, True])
def test_a_flat_tail_has_what_is_left_of_one(wide: bool) -> None:
    teacher = logits(64, 50)
    scheme = FlatTail(10, wide)
    p = scheme.decode(scheme.encode(teacher), 50).exp()
    assert torch.allclose(p.sum(1), torch.ones(64), atol=1e-6)
    truth = teacher.softmax(1)
    values, which = truth.topk(10, 1)
    assert torch.allclose(p.gather(1, which), values, rtol=0 if wide else 2**-11, atol=2**-25)
    tail = p.scatter(1, which, torch.nan)
    share = (1 - values.sum(1)) / 40
    assert torch.allclose(tail.nanmean(1), share, atol=1e-7 if wide else 2**-11 / 40)
    assert torch.equal(tail.nan_to_num(-1).amax(1), tail.nan_to_num(2).amin(1)), "all of a tail are equal"


def test_a_flat_tail_takes_the_bytes_that_its_papers_say() -> None:
    teacher = logits(3, 1000)
    for scheme, size in ((FlatTail(10), 40), (FlatTail(100), 400), (FlatTail(5, wide=True), 40)):
        assert scheme.nbytes(scheme.encode(teacher), 1000) == size  # TinyViT's records have 4 more for a seed


def test_a_tail_that_rounding_has_left_nothing_of_stays_finite() -> None:
    teacher = torch.zeros(1, 20)
    teacher[0, :3] = torch.tensor([30.0, 29.0, 28.9])
    scheme = FlatTail(3)
    assert scheme.decode(scheme.encode(teacher), 20).isfinite().all()


@pytest.mark.parametrize("powers", [(0, 1, 2), (0, 1, 0.5), RECOMMENDED.powers])
def test_a_polynomial_is_exact_where_the_sorted_log_probabilities_are_one(powers: tuple[float, ...]) -> None:
    """All classes are kept, so that nothing is spread, and the tail is the polynomial up to float32."""
    classes, exact = 60, 4
    place = torch.arange(classes - exact, dtype=torch.float64)
    weights = [-3.0, -0.05, -0.002, -1e-5, -1e-7]
    tail = sum(weight * place**power for weight, power in zip([*weights[: len(powers) - 1], -0.1], powers, strict=True))
    ordered = torch.cat([torch.tensor([2.0, 1.0, 0.5, 0.0], dtype=torch.float64), tail])
    teacher = ordered[torch.randperm(classes, generator=torch.Generator().manual_seed(1))].float().unsqueeze(0)
    scheme = Polynomial(128, exact, powers)
    found, wanted = scheme.decode(scheme.encode(teacher), classes), teacher.log_softmax(1)
    leaders = wanted >= wanted.topk(exact, 1)[0][:, -1:]
    assert torch.allclose(found[leaders], wanted[leaders], rtol=2**-8)  # bfloat16
    assert torch.allclose(found[~leaders], wanted[~leaders], rtol=1e-4, atol=1e-4)


def test_a_polynomial_spreads_the_rest_evenly() -> None:
    teacher = logits(16, 300)
    found = BUDGET.decode(BUDGET.encode(teacher), 300).exp()
    kept = torch.zeros(16, 300, dtype=torch.bool).scatter_(1, teacher.topk(50, 1)[1], True)
    rest, together = found[~kept].reshape(16, 250), found.masked_fill(~kept, 0).sum(1)
    assert torch.equal(rest.amin(1), rest.amax(1)), "classes that aren't kept have equal shares"
    assert torch.allclose(rest[:, 0], ((1 - together) / 250).clamp_min(1e-8), rtol=1e-3, atol=1e-8)


def test_a_polynomial_takes_the_bytes_that_its_readme_says() -> None:
    """About 300 and 114 bytes a token of vocabularies of 128,000 and 65,536; here with the bits of 1,000 classes."""
    teacher = logits(2, 1000)
    assert RECOMMENDED.nbytes(RECOMMENDED.encode(teacher), 1000) == 16 * 2 + 6 * 4 + 128 * 10 / 8
    assert BUDGET.nbytes(BUDGET.encode(teacher), 1000) == 1 * 2 + 3 * 4 + math.ceil(50 * 10 / 8)


@pytest.mark.parametrize("samples", [12, 50])
def test_sampled_targets_are_unbiased(samples: int) -> None:
    """Their mean over many draws is the teacher's probability, within five standard errors of a multinomial."""
    draws, one = 20_000, logits(1, 8, 1.5)
    scheme = Sampled(samples)
    shares = scheme.decode(scheme.encode(one.expand(draws, -1)), 8).exp()
    assert torch.allclose(shares.sum(1), torch.ones(draws), atol=1e-5)
    p = one.softmax(1)[0]
    error = (p * (1 - p) / (samples * draws)).sqrt()
    assert ((shares.mean(0) - p).abs() < 5 * error).all()


def test_sampled_targets_take_few_bytes_where_the_teacher_is_sure() -> None:
    sure = torch.tensor([[100.0] + [0.0] * 999])
    scheme = Sampled(50)
    assert scheme.nbytes(scheme.encode(sure), 1000) == 1 + 2  # 10 bits for the class and 6 for how often


# -- what is measured


def test_the_divergence_is_the_closed_form_and_infinite_where_nothing_is_left() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]], dtype=torch.float64).log()
    q = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.5, 0.0]], dtype=torch.float64).log()
    wanted = [0.5 * math.log(2) + 0.25 * math.log(0.5), math.log(2)]
    assert codecs_measure.divergence(p, q).tolist() == pytest.approx(wanted)
    assert codecs_measure.divergence(q, p).tolist()[1] == math.inf


def test_errors_of_classes_are_those_of_scipy() -> None:
    from scipy.special import softmax
    from scipy.stats import entropy

    teacher = logits(40, 12)
    kept = Codec.of("int:bits=4", "classes", teacher)
    found = codecs_measure.error_of_classes(kept, codecs_measure.coded(kept, teacher))
    decoded = kept.target(kept.encode(teacher))
    for T in (1, 2, 4, 8):
        p, q = (softmax(some.double().numpy() / T, axis=1) for some in (teacher, decoded))
        assert found[f"kl_T{T}"] == pytest.approx(entropy(p, q, axis=1).mean())
        assert found[f"kl_T{T}_p99"] == pytest.approx(np.quantile(entropy(p, q, axis=1), 0.99))
        assert found[f"reverse_T{T}"] == pytest.approx(entropy(q, p, axis=1).mean())
    assert found["agreement"] == (teacher.argmax(1) == decoded.argmax(1)).double().mean()


def test_the_exact_codec_loses_nothing_and_harms_no_loss() -> None:
    teacher = logits(300, 30)
    kept = Codec.of("fp32", "classes", teacher)
    found = codecs_measure.error_of_classes(kept, codecs_measure.coded(kept, teacher))
    assert found.pop("agreement") == 1
    assert set(found.values()) == {0.0}
    student, labels = logits(300, 30).flip(0), torch.arange(300) % 30
    harm = codecs_losses.harm(kept, {"kl": Seen(student, teacher, labels)})
    assert harm["kl"]["value"] == harm["kl"]["gradient"] == 0
    assert harm["kl"]["cosine"] == pytest.approx(1)


def test_a_loss_that_a_codec_harms_is_found_by_its_gradient() -> None:
    """The gradient of mse is that of the differences, so that a flat tail's error in it has a closed form; kl at T = 1
    sees almost nothing of the tail."""
    teacher = logits(128, 100)
    kept = Codec.of("topk:k=10", "classes", teacher)
    student, labels = torch.zeros(128, 100), torch.zeros(128, dtype=torch.int64)
    given = dict.fromkeys(codecs_losses.losses_of("classes"), Seen(student, teacher, labels))
    harm = codecs_losses.harm(kept, given)
    decoded = kept.target(kept.encode(teacher)).at(1.0)
    assert harm["mse"]["gradient"] == pytest.approx(float((decoded - teacher).norm() / teacher.norm()), rel=1e-5)
    assert harm["hard"]["gradient"] == 0
    assert {"mse", "kl:standardize=true"} <= set(codecs_losses.harmed(harm, 0.25))
    assert not {"hard", "kl:T=1"} & set(codecs_losses.harmed(harm, 0.25))


def test_losses_of_values_are_measured_too() -> None:
    teacher, labels = logits(128, 12), torch.zeros(128, dtype=torch.int64)
    seen = Seen(logits(128, 12).flip(0), teacher, labels)
    harm = codecs_losses.harm(
        Codec.of("fp16", "values", teacher), dict.fromkeys(codecs_losses.losses_of("values"), seen)
    )
    assert {"rkd", "cosine", "mse", "sp", "pkt", "cc", "smooth_l1"} == set(harm)
    assert all(found["gradient"] < 0.05 for found in harm.values())


def test_a_linear_map_is_found() -> None:
    vectors = logits(50, 6)
    wanted = vectors @ logits(6, 9) + 2
    assert torch.allclose(codecs_losses.through(vectors, wanted, 30), wanted, atol=1e-3)


def test_all_schemes_keep_what_they_say() -> None:
    for kind, schemes, values in (
        ("classes", for_classes(100), logits(160, 100)),
        ("classes", for_classes(1000), logits(40, 1000)),
        ("values", for_values(114), logits(160, 114)),
    ):
        assert len({scheme.name for scheme in schemes}) == len(schemes)
        for scheme in schemes:
            kept = scheme.kept(kind, values)
            assert isinstance(kept, Codec if scheme.ours else PeerCodec)
            arrays = kept.encode(values[:8])
            assert 0 < kept.nbytes(arrays) <= 4 * values.shape[1]
            if scheme.name.startswith("basis"):
                assert kept.nbytes(arrays) <= int(scheme.name.partition("=")[2])
                assert kept.constant_bytes > 0


# -- caches and runs


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("codecs")
    rows = {"train": 300, "test": 40}
    generator = np.random.default_rng(0)
    for split, count in rows.items():
        np.save(place / f"{split}_images.npy", generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))
        np.save(place / f"{split}_labels.npy", np.arange(count) % 60)
    (place / "classes.txt").write_text("\n".join(f"class {number}" for number in range(60)) + "\n")
    (place / "net.py").write_text(TEACHER)
    generator = torch.Generator().manual_seed(0)
    weights = {"1.weight": torch.randn(60, 192, generator=generator) / 4, "1.bias": torch.zeros(60)}
    save_file(weights, place / "net.safetensors")
    dump(
        f"{place}/net.py:make", teacher_weights=str(place / "net.safetensors"), dataset=f"arrays:{place}", size=8,
        augment="flip", views=2, codec="fp32", hint=("1:in",), out=str(place / "fp32"), amp="off",
    )  # fmt: skip
    return place / "fp32"


@pytest.mark.parametrize("spec", ["fp16", "int:bits=4", "topk:k=20", "basis:bytes=22"])
def test_a_cache_in_another_codec_is_what_a_dump_would_have_made(fp32: Path, tmp_path: Path, spec: str) -> None:
    """The same keys and digests, verified, and what the codec makes of the same logits."""
    recoded(fp32, tmp_path / "other", spec)
    source, found = Cache(fp32), Cache(tmp_path / "other")
    assert found.manifest.cache_id == source.manifest.cache_id
    assert found.manifest.columns == ["logits"]
    assert verify(tmp_path / "other").ok
    rows = np.arange(source.rows)
    for view in range(2):
        ours, theirs = found.column("logits"), source.column("logits")
        held, said = ours.gather(view, rows), theirs.gather(view, rows)
        assert np.array_equal(held["digest"], said["digest"])
        wanted = ours.layout.decode(ours.layout.encode(theirs.decode(said)))
        assert torch.equal(ours.decode(held), wanted)
    manifest = (tmp_path / "other" / "cache.json").read_bytes()
    recoded(fp32, tmp_path / "other", spec)
    assert (tmp_path / "other" / "cache.json").read_bytes() == manifest, "what is there is complete"


def test_a_scheme_of_others_becomes_a_cache_of_what_comes_back(fp32: Path, tmp_path: Path) -> None:
    scheme = FlatTail(10)
    recoded(fp32, tmp_path / "flat", "fp32", lambda some: scheme.decode(scheme.encode(some), 60))
    found, source = Cache(tmp_path / "flat").column("logits"), Cache(fp32).column("logits")
    rows = np.arange(50)
    said = source.decode(source.gather(1, rows))
    assert torch.equal(found.decode(found.gather(1, rows)), scheme.decode(scheme.encode(said), 60))


def test_the_benchmark_runs_on_made_logits(tmp_path: Path) -> None:
    """Each scheme is a line, what was measured isn't measured again, and infinities are null."""
    np.save(tmp_path / "made.npy", logits(300, 100).numpy())
    given = ["--place", str(tmp_path), "--results", str(tmp_path / "t.jsonl"), "--repetitions", "1"]
    codecs.main([*given, "--logits", f"made={tmp_path / 'made.npy'}", "--rows", "^(fp|int:bits=4|top-10|12 samples)"])
    done = recorded(tmp_path / "t.jsonl")
    names = {record["name"] for record in done.values() if record["table"] == "errors"}
    assert {"fp32", "fp16", "int:bits=4", "top-10, flat tail (TinyViT)", "12 samples (RS-KD)"} <= names
    assert "bf16" not in names
    about = done["set made"]
    assert (about["numbers"], about["fitted"], about["rows"], about["directions"]) == (100, 150, 150, 100)
    assert done["errors made: fp32"]["bytes"] == 400
    assert done["errors made: fp32"]["error"]["kl_T1"] == 0
    assert done["errors made: 12 samples (RS-KD)"]["error"]["kl_T1"] is None
    assert all(low <= median <= high for median, low, high in (done["errors made: fp16"]["decode"],))
    text = (tmp_path / "t.jsonl").read_text()
    assert all(json.loads(line, parse_constant=pytest.fail) for line in text.splitlines())
    codecs.main([*given, "--logits", f"made={tmp_path / 'made.npy'}", "--rows", "^fp"])
    assert (tmp_path / "t.jsonl").read_text() == text
    codecs.main([*given, "--logits", f"made={tmp_path / 'made.npy'}", "--rows", "^fp16", "--again"])
    assert len((tmp_path / "t.jsonl").read_text().splitlines()) == len(text.splitlines()) + 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["students"], "students needs --teacher"),
        (["--logits", "made.npy"], "--logits made.npy: give a name and a file"),
    ],
)
def test_the_benchmark_says_what_is_missing(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        codecs.main([*given, "--place", str(tmp_path)])
    assert said in capsys.readouterr().err


def test_every_cache_that_a_student_needs_is_known() -> None:
    import re

    from benchmarks.codecs_rows import students

    needed = {name for trial in students() for name in re.findall(r"{(\w+)}", trial.command)}
    assert needed == {*NEEDED, "fp32", "held"}
