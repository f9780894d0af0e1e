"""``hf:`` from a teacher to a student: texts, tokens, pictures and models as transformers and datasets save them."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import harness_process
import numpy as np
import pytest
import torch
from harness_hf import (
    CLASSES,
    ROWS,
    change_json,
    datasets,
    into_hub_cache,
    make_dataset,
    save_model,
    save_pretrained,
    save_tokenizer,
    sentences,
    transformers,
)
from harness_hub import served
from harness_train import command, weights

from softcache import remembered
from softcache.cache.reader import Cache
from softcache.config.folders import slug
from softcache.datasets._open import open_samples
from softcache.errors import DatasetError, ModelError, NotNamedError, UsageError
from softcache.fields import Fields
from softcache.models._open import open_network
from softcache.models._source import source_of
from softcache.stages.dump import dump
from softcache.stages.teach import teach
from softcache.stages.train import train
from softcache.views._open import open_viewed

DUMP: dict[str, Any] = {"device": "cpu", "out": "cache", "codec": "fp32", "batch_size": 16, "shard_rows": 64}
STUDENT: dict[str, Any] = {
    "device": "cpu", "epochs": 2, "batch_size": 32, "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.0, "warmup": 0,
}  # fmt: skip
NONE = ((0.0,), (1.0,))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _here(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What datasets prepares goes below the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "prepared")


@pytest.fixture
def reviews(here: Path) -> str:
    """A dataset on disk with the tokenizer and the teacher beside it."""
    save_tokenizer("tokenizer")
    save_model("teacher")
    save_model("student", "DistilBert", dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    make_dataset().save_to_disk("reviews")
    return "hf:reviews,tokenizer=tokenizer"


def logits_by_transformers(folder: str, tokenizer: str, texts: list[str]) -> np.ndarray:
    """Sentences one by one, so without any padding."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).double().eval()
    encode = transformers.AutoTokenizer.from_pretrained(tokenizer)
    with torch.inference_mode():
        return np.stack([model(**encode(text, return_tensors="pt")).logits[0].numpy() for text in texts])


def kept(folder: str = "cache") -> np.ndarray:
    cache = Cache(folder)
    column = cache.column("logits")
    return column.decode(column.gather(0, np.arange(cache.rows))).numpy()


@pytest.mark.parametrize(("kind", "pad"), [("Bert", 0), ("Roberta", 1)])
def test_kept_logits_are_those_of_transformers(here: Path, kind: str, pad: int) -> None:
    save_tokenizer("tokenizer", pad)
    save_model("teacher", kind, pad_token_id=pad)
    make_dataset().save_to_disk("reviews")
    dump("hf:teacher", dataset="hf:reviews,tokenizer=tokenizer", dtype="float64", **DUMP)
    wanted = logits_by_transformers("teacher", "tokenizer", sentences(ROWS, 1)["sentence"])
    assert wanted.std(0).min() > 0.05
    assert np.abs(kept() - wanted).max() < 1e-6
    identity = Cache("cache").manifest.identity
    assert identity.dataset.inputs["input_ids"].pad == pad
    assert (identity.teacher.spec, identity.dataset.spec) == ("hf:teacher", "hf:reviews,tokenizer=tokenizer")


def test_cached_equals_live_to_the_bit_and_a_student_is_better_than_chance(
    reviews: str, here: Path, capfd: pytest.CaptureFixture
) -> None:
    numerics = {"dtype": "float64"}
    dump("hf:teacher", dataset=reviews, **DUMP, **numerics)
    train(student="hf:student", cache="cache", dataset=reviews, out="cached", **STUDENT)
    live = {"online": True, "teacher": "hf:teacher", "views": 1, **numerics}
    train(student="hf:student", dataset=reviews, out="live", **live, **STUDENT)
    cached, online = weights(Path("cached")), weights(Path("live"))
    assert all(torch.equal(cached[name], online[name]) for name in cached)
    run = train(student="hf:student", dataset=reviews, out="alone", alpha=0, **{**STUDENT, "epochs": 20})
    assert run.test is not None
    assert run.test.top1 > 0.8
    capfd.readouterr()
    assert command("eval", "alone") == 0
    assert f"{run.test.top1 * 100:.2f}" in capfd.readouterr().out
    assert command("info", "cache") == 0
    said = capfd.readouterr().out
    assert "input_ids L int64" in said
    assert "hf:teacher" in said


def test_validation_is_the_test_split_where_that_has_no_labels(reviews: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    samples = open_samples(reviews, "test")
    assert "the test split of hf:" in caplog.text
    assert "is validation" in caplog.text
    assert samples.labels.tolist() == sentences(48, 2)["label"]
    assert samples.classes == tuple(CLASSES)
    assert set(open_samples(f"{reviews},test=test", "test").labels.tolist()) == {-1}
    with pytest.raises(DatasetError, match=r"has no split 'dev': it has train, validation, test"):
        open_samples(f"{reviews},test=dev", "test")


def test_tokens_are_the_tokenizers_own(reviews: str) -> None:
    encode = transformers.AutoTokenizer.from_pretrained("tokenizer")
    texts = sentences(ROWS, 1)["sentence"]
    viewed = open_viewed(reviews, "train")
    rows = viewed.batch(np.arange(ROWS), 0).arrays()
    assert [row.tolist() for row in rows["input_ids"]] == encode(texts)["input_ids"]
    assert viewed.batch([0], 0).masks == {"attention_mask": "input_ids"}
    short = open_samples(f"{reviews},max_length=5", "train").values["input_ids"]
    wanted = encode(texts, truncation=True, max_length=5)["input_ids"]
    assert [short.batch(np.array([k]))[0][0].tolist() for k in range(ROWS)] == wanted


def test_pairs_of_texts_have_token_types(here: Path) -> None:
    encode = save_tokenizer("tokenizer")
    change_json(here / "tokenizer" / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    encode = transformers.AutoTokenizer.from_pretrained("tokenizer")
    rows = {"a": ["w1 w2", "w3"], "b": ["w4", "w5 w6 w7"], "label": [0, 1]}
    datasets.DatasetDict(train=datasets.Dataset.from_dict(rows)).save_to_disk("pairs")
    values = open_samples("hf:pairs,tokenizer=tokenizer,text=a+b", "train").values
    made = encode(rows["a"], rows["b"])
    for name in ("input_ids", "token_type_ids"):
        assert [values[name].batch(np.array([k]))[0][0].tolist() for k in range(2)] == made[name]
    assert made["token_type_ids"][0] == [0, 0, 0, 0, 1, 1]
    with pytest.raises(DatasetError, match=r"has 2 columns of text \(a, b\): say which, text=COLUMN"):
        open_samples("hf:pairs,tokenizer=tokenizer", "train")


def test_a_network_that_takes_no_token_types_goes_without(here: Path) -> None:
    save_model("student", "DistilBert", dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    network = open_network("hf:student", classes=3, statistics=NONE, weights="DEFAULT", pictures=False).eval()
    ids, lengths, masks = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([3, 2]), {"attention_mask": "input_ids"}
    alone = Fields({"input_ids": ids}, {"input_ids": lengths}, masks)
    both = Fields({"input_ids": ids, "token_type_ids": ids * 0}, {**alone.lengths, "token_type_ids": lengths}, masks)
    with torch.inference_mode():
        assert torch.equal(network(alone), network(both))


def test_folders_of_csv_files(here: Path) -> None:
    save_tokenizer("tokenizer")
    folder = here / "plain"
    folder.mkdir()
    for split, seed in (("train", 1), ("test", 2)):
        rows = sentences(12, seed)
        lines = [f"{text},{CLASSES[k]}" for text, k in zip(rows["sentence"], rows["label"], strict=True)]
        (folder / f"{split}.csv").write_text("\n".join(["sentence,label", *lines]) + "\n")
    train, test = (open_samples("hf:plain,tokenizer=tokenizer", split) for split in ("train", "test"))
    assert train.classes == test.classes == ("negative", "neutral", "positive")
    assert test.labels.tolist() == sentences(12, 2)["label"]
    with pytest.raises(
        DatasetError, match=r"no columns of numbers or images, only sentence, label: of texts tokenizer="
    ):
        open_samples("hf:plain", "train")


def test_tokenized_columns_lose_their_padding_and_their_mask(here: Path) -> None:
    encode = save_tokenizer("tokenizer", pad=1)
    texts = sentences(9, 1)["sentence"]
    plain = encode(texts)["input_ids"]
    for padding in (False, "longest"):
        made = encode(texts, padding=padding)
        rows = {**made, "labels": [k % 3 for k in range(9)], "idx": list(range(9))}
        datasets.DatasetDict(train=datasets.Dataset.from_dict(rows)).save_to_disk("tokens")
        held = open_samples("hf:tokens,columns=input_ids", "train").values["input_ids"]
        assert [held.batch(np.array([k]))[0][0].tolist() for k in range(9)] == plain
        assert held.pad == (1 if padding else 0)
    assert open_samples("hf:tokens,columns=input_ids,pad=7", "train").values["input_ids"].pad == 7
    encode.padding_side = "left"
    datasets.DatasetDict(train=datasets.Dataset.from_dict(dict(encode(texts, padding=True)))).save_to_disk("left")
    with pytest.raises(DatasetError, match="attention_mask has zeros before ones"):
        open_samples("hf:left,columns=input_ids", "train")


def test_columns_of_numbers(here: Path) -> None:
    rows = {
        "vector": [[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]],
        "sound": [[0.5], [], [1.5, 2.5]],
        "points": [[[1, 2]], [[3, 4], [5, 6]], [[7, 8]]],
        "age": [7, 8, 9],
        "label": [1, None, 0],
    }
    kinds = datasets.Features(
        vector=datasets.List(datasets.Value("float32"), length=2), sound=datasets.List(datasets.Value("float32")),
        points=datasets.List(datasets.List(datasets.Value("int64"))), age=datasets.Value("int64"),
        label=datasets.Value("int64"),
    )  # fmt: skip
    whole = datasets.Dataset.from_dict(rows, features=kinds)
    datasets.DatasetDict(train=whole.select([2, 0, 1])).save_to_disk("numbers")
    samples = open_samples("hf:numbers", "train")
    assert {name: str(held.field) for name, held in samples.values.items()} == {
        "points": "L×2 int64", "sound": "L float32", "vector": "2 float32",
    }  # fmt: skip
    assert samples.values["vector"].values.tolist() == [[5, 9], [1, 2], [3, 4]]
    assert samples.values["points"].batch(np.array([2]))[0].tolist() == [[[3, 4], [5, 6]]]
    assert samples.values["sound"].lengths.tolist() == [2, 1, 0]
    assert samples.labels.tolist() == [0, 1, -1]
    age = open_samples("hf:numbers,columns=age", "train").values["age"]
    assert age.values.tolist() == [[9], [7], [8]]
    with pytest.raises(DatasetError, match=r"there is no column 'weight': there are vector"):
        open_samples("hf:numbers,columns=age+weight", "train")


def test_columns_are_labels_of_other_kinds(here: Path) -> None:
    rows = {
        "text": ["w1", "w2 w3", "w4"], "label": [0.5, None, -2.0], "kind": [True, False, None], "rude": [1, None, 0],
        "length": [3, 4, 5],
    }  # fmt: skip
    kinds = datasets.Features(
        text=datasets.Value("string"), label=datasets.Value("float64"), kind=datasets.Value("bool"),
        rude=datasets.Value("int64"), length=datasets.Value("int64"),
    )  # fmt: skip
    whole = datasets.Dataset.from_dict(rows, features=kinds)
    datasets.DatasetDict(train=whole.select([2, 0, 1]), test=whole).save_to_disk("rated")
    rated = open_samples("hf:rated,columns=length", "train")
    assert (rated.label_kind, rated.classes) == ("values", ("0",))
    assert np.array_equal(rated.labels, np.float32([-2, 0.5, np.nan]), equal_nan=True)
    answers = open_samples("hf:rated,binary=kind+rude,columns=length", "test")
    assert (answers.label_kind, answers.classes) == ("binary", ("kind", "rude"))
    assert answers.labels.tolist() == [[1, 1], [0, 255], [255, 0]]
    assert set(answers.values) == {"length"}
    numbers = open_samples("hf:rated,values=label+length,columns=length", "test").labels
    assert np.array_equal(numbers, np.float32([[0.5, 3], [np.nan, 4], [-2, 5]]), equal_nan=True)
    for option, says in {
        "binary=length": "length has 5, not 0, 1 or nothing", "values=text": "text is a column of string",
        "values=age": "has no column 'age'",
    }.items():  # fmt: skip
        with pytest.raises(DatasetError, match=says):
            open_samples(f"hf:rated,columns=length,{option}", "train")
    with pytest.raises(UsageError, match="label, binary and values all name labels"):
        open_samples("hf:rated,label=kind,binary=rude", "train")


def test_columns_of_images_are_pictures(here: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    made = datasets.Dataset.from_dict({"image": list(pixels), "label": [0, 1] * 3}, features=kinds)
    datasets.DatasetDict(train=made, test=made.select([3, 4])).save_to_disk("photos")
    samples = open_samples("hf:photos", "train")
    assert samples.pictures
    assert all(np.array_equal(samples.image(k), pixels[k]) for k in range(6))
    assert (samples.classes, samples.labels.tolist()) == (("cat", "dog"), [0, 1] * 3)
    test = open_samples("hf:photos", "test")
    assert np.array_equal(test.image(0), pixels[3])
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=40, patch_size=8
    )
    model = transformers.ViTForImageClassification(config).eval()
    save_pretrained(model, "vit")
    said = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_rescale": True, "rescale_factor": 0.00392156862745098}
    Path("vit/preprocessor_config.json").write_text(json.dumps(said))
    dump("hf:vit", dataset="hf:photos", augment="none", amp="off", **DUMP)
    with torch.inference_mode():
        wanted = model((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25).logits.numpy()
    assert np.abs(kept() - wanted).max() < 1e-6


@pytest.mark.parametrize(
    ("said", "made"),
    [
        ({"image_mean": [0.5], "image_std": [0.5]}, lambda x: (x / 255 - 0.5) / 0.5),
        ({"do_normalize": False}, lambda x: x / 255),
        ({"image_mean": [0.1], "image_std": [2.0], "rescale_factor": 1 / 127.5}, lambda x: (x / 127.5 - 0.1) / 2),
        (
            {"image_mean": [0.1], "image_std": [2.0], "rescale_factor": 1 / 127.5, "rescale_offset": True},
            lambda x: (x / 127.5 - 1 - 0.1) / 2,
        ),
        ({"image_mean": [100.0], "image_std": [50.0], "do_rescale": False}, lambda x: (x - 100) / 50),
    ],
)
def test_pixels_are_normalized_as_image_processors_do(said: dict[str, Any], made: Any) -> None:
    from softcache.models.hf import _statistics

    (mean,), (std,) = _statistics(said, "x")
    pixels = np.arange(256.0)
    assert np.allclose((pixels / 255 - mean) / std, made(pixels), rtol=0, atol=1e-12)


def test_other_outputs_by_their_names(reviews: str, here: Path) -> None:
    dump("hf:teacher,auto=AutoModel", dataset=reviews, output=("pooler_output",), **DUMP)
    column = Cache("cache").column("pooler_output")
    found = column.decode(column.gather(0, np.arange(ROWS))).numpy()
    model = transformers.AutoModel.from_pretrained("teacher").eval()
    encode = transformers.AutoTokenizer.from_pretrained("tokenizer")
    text = sentences(ROWS, 1)["sentence"]
    with torch.inference_mode():
        wanted = np.stack([model(**encode(one, return_tensors="pt")).pooler_output[0].numpy() for one in text])
    assert np.abs(found - wanted).max() < 1e-5


def test_a_pretrained_body_is_fine_tuned_and_is_no_teacher(reviews: str, here: Path) -> None:
    model = save_model("whole", "Roberta", pad_token_id=0)
    save_pretrained(model.roberta, "body")
    change_json(here / "body" / "config.json", num_labels=3)
    with pytest.raises(ModelError, match=r"does not fit Roberta.*: 4 missing \(classifier\.dense\.weight"):
        dump("hf:body", dataset=reviews, **DUMP)
    network = open_network(
        "hf:body", classes=3, statistics=NONE, weights="DEFAULT", new_classifier=True, pictures=False
    )
    assert {name.split(".")[0] for name in network.fresh} == {"classifier"}
    body = network.model.roberta.state_dict()
    assert all(torch.equal(tensor, model.roberta.state_dict()[name]) for name, tensor in body.items())


def test_a_fine_tuned_model_is_found_again_by_its_name(
    reviews: str, here: Path, state: Path, capfd: pytest.CaptureFixture
) -> None:
    save_pretrained(save_model("whole").bert, "body")
    fit = {**STUDENT, "epochs": 16}
    made = teach("hf:body", weights="DEFAULT", dataset=reviews, **fit)
    assert made.folder == Path("teachers/body-reviews")
    assert made.test is not None
    assert made.test.top1 > 0.8
    dump("hf:body", dataset=reviews, **DUMP)
    assert (kept().argmax(1) == np.arange(ROWS) % 3).mean() > 0.8
    assert command("eval", str(made.folder)) == 0
    assert f"{made.test.top1 * 100:.2f}" in capfd.readouterr().out
    remembered_files = list((state / "given").iterdir())
    assert remembered_files
    for file in remembered_files:
        file.unlink()
    assert command("eval", str(made.folder), "--dataset", reviews) == 1
    assert f"begin the command with `softcache --allow hf:{here}/body`" in capfd.readouterr().err


def test_workers_decode_images_of_a_dataset(here: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    made = datasets.Dataset.from_dict({"image": list(pixels), "label": [0, 1] * 4}, features=kinds)
    datasets.DatasetDict(train=made).save_to_disk("photos")
    samples = pickle.loads(pickle.dumps(open_samples("hf:photos", "train")))
    assert all(np.array_equal(samples.image(k), pixels[k]) for k in range(8))


def test_classes_are_compared_by_their_names(here: Path) -> None:
    save_model("teacher")
    known = {"classes": 3, "statistics": NONE, "weights": "DEFAULT", "pictures": False}
    assert open_network("hf:teacher", **known).class_names == ("NEGATIVE", "NEUTRAL", "POSITIVE")
    assert open_network("hf:teacher", class_names=CLASSES, **known).class_names == tuple(CLASSES)
    with pytest.raises(ModelError, match="has the classes of the data in another order"):
        open_network("hf:teacher", class_names=CLASSES[::-1], **known)
    save_model("unnamed", id2label=None)
    assert open_network("hf:unnamed", **known).class_names is None


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def indexed(name: str) -> Any:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pickled, r"has no model\.safetensors, and other formats could run code.*save it again with save_pretrained"),
        (indexed("../other/model.safetensors"), r"names '\.\./other/model\.safetensors', which is no safetensors file"),
        (indexed("pytorch_model.bin"), r"names 'pytorch_model\.bin', which is no safetensors file beside it"),
        (indexed("gone.safetensors"), r"lacks gone\.safetensors, which its model\.safetensors\.index\.json names"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "is an adapter to another model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "hf:.* can't be read: "),
        (lambda folder: (folder / "config.json").unlink(), r"is no model of transformers: it has no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json can't be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), r"config\.json has no model_type"),
        (lambda folder: change_json(folder / "config.json", model_type="of nobody"), "hf:.* can't be read: ValueError"),
        (lambda folder: change_json(folder / "config.json", quantization_config={"bits": 4}), "is quantized"),
        (
            lambda folder: change_json(folder / "config.json", transformers_weights="../x.safetensors"),
            "names a file of weights of its own",
        ),
    ],
)
def test_folders_that_can_not_be_used(here: Path, change: Any, message: str) -> None:
    save_model("teacher")
    change(here / "teacher")
    with pytest.raises(ModelError, match=message) as caught:
        open_network("hf:teacher", classes=3, statistics=NONE, weights="DEFAULT", pictures=False)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_several_files_is_read_whole(here: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model("teacher")
    state = load_file("teacher/model.safetensors")
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: state[name] for name in own}, here / "teacher" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (here / "teacher" / "model.safetensors.index.json").write_text(json.dumps(index))
    (here / "teacher" / "model.safetensors").unlink()
    network = open_network("hf:teacher", classes=3, statistics=NONE, weights="DEFAULT", pictures=False)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.model.state_dict().items())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:teacher,revision=main", "is a folder, which has no revisions"),
        ("hf:teacher,auto=AutoModelForSequenceClasification", "did you mean AutoModelForSequenceClassification"),
        ("hf:teacher,auto=Trainer", "transformers has no auto class 'Trainer'"),
        ("hf:./gone", "no folder is there"),
        ("hf:teacher,trust=true", "no folder is there"),
    ],
)
def test_options_that_can_not_be(here: Path, spec: str, message: str) -> None:
    save_model("teacher")
    with pytest.raises(UsageError, match=message):
        source_of(spec)


OWN = """
import pathlib
import transformers

pathlib.Path({marker!r}).touch()


class OwnConfig(transformers.BertConfig):
    model_type = "own"


class Own(transformers.BertForSequenceClassification):
    config_class = OwnConfig
"""


def save_own(folder: Path, marker: Path) -> None:
    """A model with code of its own, which leaves a mark where it runs."""
    save_model(folder)
    (folder / "own.py").write_text(OWN.format(marker=str(marker)))
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"}
    change_json(folder / "config.json", model_type="own", auto_map=code)


def test_code_beside_a_model_runs_only_by_the_users_own_option(
    here: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(here / "modules"))
    monkeypatch.syspath_prepend(here / "modules")
    marker = here / "ran"
    save_own(here / "own", marker)
    save_tokenizer("tokenizer")
    make_dataset().save_to_disk("reviews")
    asked = {**DUMP, "dataset": "hf:reviews,tokenizer=tokenizer"}
    with pytest.raises(ModelError, match="trust_remote_code"):
        dump("hf:own", **asked)
    assert not marker.exists()
    spec = "hf:own,trust_remote_code=true"
    dump(spec, **asked)
    assert marker.exists()
    marker.unlink()
    identity = Cache("cache").manifest.cache_id
    assert remembered.follow(Path("cache"), "teacher", spec, identity, made="it") == remembered.absolute(spec)
    with open("own/own.py", "a") as file:
        file.write("# another line\n")
    with pytest.raises(NotNamedError, match=r"own\.py has changed since you gave it"):
        remembered.follow(Path("cache"), "teacher", spec, identity, made="it")


@pytest.mark.parametrize(
    "spec", ["hf:own", "hf:org/own", "hf:org/own,trust_remote_code=true", f"hf:org/own,revision={COMMIT}"]
)
def test_a_name_in_a_folder_is_never_followed(here: Path, state: Path, spec: str) -> None:
    for role in ("teacher", "model", "student", "dataset"):
        assert not remembered.is_plain(role, spec)
        with pytest.raises(NotNamedError, match="does not open a path or run code that is named only in a folder"):
            remembered.follow(here, role, spec, "", made="it was made from it")


def test_specs_where_they_are_kept(here: Path) -> None:
    save_model("teacher")
    (here / "tokens").mkdir()
    spec = f"hf:reviews,config=sst2,tokenizer={here}/tokens,max_length=8"
    assert remembered.absolute("hf:teacher,auto=AutoModel") == f"hf:{here}/teacher,auto=AutoModel"
    assert remembered.absolute("hf:reviews,config=sst2,tokenizer=tokens,max_length=8") == spec
    assert remembered.portable(spec) == "hf:reviews,config=sst2,tokenizer=tokens,max_length=8"
    assert remembered.portable(f"hf:{here}/teacher,auto=AutoModel") == "hf:teacher,auto=AutoModel"
    assert remembered.portable(f"hf:org/name,revision={COMMIT}") == f"hf:org/name,revision={COMMIT}"
    assert slug(f"hf:nyu-mll/glue,config=sst2,revision={COMMIT}") == "glue-sst2"
    source, canonical = source_of("hf:teacher,auto=AutoModelForSequenceClassification,trust_remote_code=false")
    assert canonical == f"hf:{here}/teacher"
    assert source_of(canonical) == (source, canonical)


HUB = """
import numpy as np
from softcache.cache.reader import Cache
from softcache.cli._main import run
from softcache.datasets._open import open_samples
from softcache.errors import SoftcacheError, UsageError
from softcache.models._source import source_of


def told(what, *arguments):
    try:
        what(*arguments)
    except SoftcacheError as error:
        print(type(error).__name__, error)


data = "hf:org/reviews,tokenizer=org/teacher"
assert run(["dump", "--teacher", "hf:org/teacher", "--dataset", data, "--device", "cpu", "--out", "cache"]) == 0
identity = Cache("cache").manifest.identity
print(identity.teacher.spec)
print(identity.dataset.spec)
assert run(["info", "cache"]) == 0
assert source_of("hf:org/teacher,revision=v1")[1] == source_of("hf:org/teacher")[1]
told(source_of, "hf:org/gone")
told(source_of, "hf:org/teacher,revision=v2")
told(open_samples, "hf:org/gone", "train")
told(source_of, "hf:org/teacher,trust_remote_code=true")
"""


def test_names_on_the_hub_become_commits(here: Path) -> None:
    """With the cache of the hub's client filled by hand, and no connection."""
    save_model("teacher")
    save_tokenizer("teacher")
    make_dataset().save_to_disk("saved")
    (here / "plain").mkdir()
    for name, split in make_dataset().items():
        split.to_parquet(here / "plain" / f"{name}.parquet")
    other = COMMIT[::-1]
    into_hub_cache(here / "hub", "model", "org/teacher", here / "teacher", COMMIT)
    (here / "hub/models--org--teacher/refs/v1").write_text(COMMIT)
    into_hub_cache(here / "hub", "dataset", "org/reviews", here / "plain", other)
    places = {"HF_HUB_CACHE": str(here / "hub"), "HF_DATASETS_CACHE": str(here / "prepared"), "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **places}
    ran = harness_process.run([sys.executable, "-c", HUB], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert f"hf:org/teacher,revision={COMMIT}" in lines
    assert f"hf:org/reviews,revision={other},tokenizer=org/teacher@{COMMIT}" in lines
    assert any(line.startswith("teacher ") and f"revision={COMMIT}" in line for line in lines)
    gone = "is not in the hub's cache on this machine, and the hub can't be reached"
    assert f"ModelError hf:org/gone {gone}" in ran.stdout
    assert f"ModelError hf:org/teacher {gone}" in ran.stdout
    assert f"DatasetError hf:org/gone {gone}" in ran.stdout
    assert (
        f"UsageError hf:org/teacher may change: name the commit whose code you trust, revision={COMMIT}" in ran.stdout
    )


ONLINE = """
from softcache.cache.reader import Cache
from softcache.cli._main import run
from softcache.errors import SoftcacheError
from softcache.datasets._open import open_samples
from softcache.models._source import source_of

data = "hf:org/reviews,tokenizer=org/teacher"
print(run(["dump", "--teacher", "hf:org/teacher", "--dataset", data, "--device", "cpu", "--out", "cache"]))
identity = Cache("cache").manifest.identity
print(identity.teacher.spec)
print(identity.dataset.spec)
for what, arguments in (
    (source_of, ["hf:org/gone"]),
    (source_of, ["hf:org/teacher,revision=v7"]),
    (open_samples, ["hf:org/gone", "train"]),
):
    try:
        what(*arguments)
    except SoftcacheError as error:
        print(type(error).__name__, error)
"""


def test_the_hub_is_asked_for_what_is_needed_and_a_branch_that_moved_is_noticed(here: Path) -> None:
    """A server here stands for the hub."""
    save_model("teacher")
    save_tokenizer("teacher")
    for name in ("pytorch_model.bin", "own.py"):
        (here / "teacher" / name).write_bytes(b"never fetched")
    (here / "plain").mkdir()
    for name, split in make_dataset().items():
        split.to_parquet(here / "plain" / f"{name}.parquet")
    other, later = COMMIT[::-1], COMMIT.replace("0", "f")
    ran = []
    for commit in (COMMIT, later):
        repositories = {
            "models/org/teacher": (here / "teacher", commit),
            "datasets/org/reviews": (here / "plain", other),
        }
        with served(repositories) as (address, asked):
            places = {"HF_ENDPOINT": address, "HF_HOME": str(here / "home")}
            environment = {**os.environ, **places}
            command = [sys.executable, "-c", ONLINE]
            ran.append(harness_process.run(command, env=environment, capture_output=True, text=True))
        assert any(line.endswith("/config.json") for line in asked)
        assert not any(line.endswith(("/own.py", "/pytorch_model.bin")) for line in asked)
    first, second = ran
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    lines = first.stdout.splitlines()
    assert lines[-6:-3] == [
        "0", f"hf:org/teacher,revision={COMMIT}", f"hf:org/reviews,revision={other},tokenizer=org/teacher@{COMMIT}",
    ]  # fmt: skip
    assert "ModelError hf:org/gone: there is no such model on the hub" in lines[-3]
    assert lines[-2] == "ModelError hf:org/teacher: the hub has no such revision of it"
    assert "DatasetError hf:org/gone: there is no such dataset on the hub" in lines[-1]
    assert "Fetching" not in first.stderr
    assert second.stdout.splitlines()[-6] == "1"
    assert "teacher.spec" in second.stderr
    assert later[:8] in second.stderr
