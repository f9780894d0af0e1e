"""Options that several commands share, each written once; and how a command shows them in sections."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection
from typing import Any

import click

from softcache import strictjson
from softcache.addresses import is_address, without_secret
from softcache.datasets._fraction import with_fraction
from softcache.distributed import rank
from softcache.errors import UsageError, nearest
from softcache.threads import settle_threads

log = logging.getLogger(__name__)
LONG = ("teach", "dump", "train")  # commands whose time depends on the CPU threads enough to say them
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Sectioned(click.Command):
    """A command whose help shows its options in sections, in the order in which they are declared."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if row is not None:
                sections.setdefault(getattr(parameter, "section", "Other"), []).append(row)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class SectionedOption(click.Option):
    """An option that knows in which section of the help it stands."""

    def __init__(self, *arguments: Any, section: str = "Other", **settings: Any):
        super().__init__(*arguments, **settings)
        self.section = section


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda f, option: option(f), reversed(options), function)

    return decorate


def section(title: str, *options: Decorator) -> Decorator:
    """Options that stand under one heading of the help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        before = len(getattr(function, "__click_params__", []))
        function = together(*options)(function)
        for parameter in function.__click_params__[before:]:  # type: ignore[attr-defined]
            parameter.section = title
        return function

    return decorate


def option(*names: str, help: str, **settings: Any) -> Decorator:
    """An option whose default is the configuration's: the parameter is only passed on when it is given."""
    return click.option(*names, help=help, cls=SectionedOption, **settings)


def flag(*names: str, help: str) -> Decorator:
    """An option without a value."""
    return option(*names, help=help, is_flag=True, default=None)


def command(name: str, file: str = "--config") -> Callable[[Callable[..., Any]], click.Command]:
    """A command that has its help in sections and takes ``--config FILE``: options from a file, which those on the
    command line replace. CPU threads are settled when it runs, because that has to be before torch is imported.

    ``file``: the name of the option that names the file.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        declared: list[click.Parameter] = getattr(function, "__click_params__", [])
        known = {str(own.name) for own in declared if own.expose_value}

        @functools.wraps(function)
        def run(from_file: str | None, **options: Any) -> Any:
            given = {key: _shown(value) for key, value in options.items() if value is not None and value != ()}
            options = {**_from_file(from_file, name, given, known, file), **given} if from_file is not None else given
            asked = (click.get_current_context().obj or {}).get("threads")
            chosen = settle_threads(asked, workers=max(0, options.get("workers", 0)))
            if chosen is not None:
                log.log(logging.INFO if name in LONG and rank() == 0 else logging.DEBUG, chosen)
            return function(**_with_fraction(options))

        whose = "a run's config.json" if file == "--config" else f"a {name}'s {name}.json"
        file_option = SectionedOption(
            [file, "from_file"],
            type=click.Path(exists=True, dir_okay=False),
            metavar="FILE",
            help=f"Options from a JSON file, such as {whose}; those given here replace them.",
        )
        # click reads this list from its end, so that the file comes last.
        run.__click_params__ = [file_option, *declared]  # type: ignore[attr-defined]
        return click.command(name, cls=Sectioned)(run)

    return decorate


def _shown(value: Any) -> Any:
    """A value without what is secret in an address: all that is below this line may be written or printed."""
    if isinstance(value, tuple):
        return tuple(map(_shown, value))
    return without_secret(value) if isinstance(value, str) and is_address(value) else value


def _with_fraction(options: dict[str, Any]) -> dict[str, Any]:
    """With ``--test-fraction`` as a part of the dataset's spec."""
    fraction = options.pop("test_fraction", None)
    if fraction is None:
        return options
    if "dataset" not in options:
        raise UsageError(f"--test-fraction {fraction:g} divides the files of a dataset: name it with --dataset")
    return {**options, "dataset": with_fraction(options["dataset"], fraction)}


def _from_file(path: str, command: str, given: dict[str, Any], known: Collection[str], file: str) -> dict[str, Any]:
    """The options in a JSON file: an object of them, or the record of a run, a teacher or a sweep, which has them as
    ``options``. ``file``: the option that named it."""
    try:
        with open(path, "rb") as opened:
            document = strictjson.loads(opened.read())
    except (OSError, ValueError) as error:
        raise click.UsageError(f"{file} {path} can't be read: {error}") from None
    options = document.get("options", document) if isinstance(document, dict) else None
    if not isinstance(options, dict):
        raise click.UsageError(f"{file} {path} is no JSON object of options")
    if document.get("command", command) != command:
        raise click.UsageError(f"{file} {path} is of softcache {document['command']}, not of softcache {command}")
    for name in options:
        if name not in known:
            raise click.UsageError(f"{file} {path} has no option {name!r} of softcache {command}{nearest(name, known)}")
    for name in sorted(options.keys() & given.keys()):
        if options[name] != given[name]:
            there = "the default" if options[name] is None else options[name]
            log.info(f"--{name.replace('_', '-')} {given[name]} replaces {there} of {path}")
    return {key: _shown(tuple(value) if isinstance(value, list) else value) for key, value in options.items()}


compress = option(
    "--compress",
    multiple=True,
    metavar="zstd|COLUMN=zstd",
    help="Compress shards without loss, zstd or zstd:level=1..19 for all columns, or COLUMN=zstd:level=3 and "
    "COLUMN=none for one; repeatable; needs the extra [compress].  [default: not compressed, or as the cache has it]",
)


def numbers(example: str, kind: type) -> Callable[..., Any]:
    """A callback for a list such as ``150,180,210``."""

    def parse(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        if value is None:
            return None
        try:
            return tuple(kind(part) for part in value.split(","))
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list such as {example}") from None

    return parse


def rows_or_all(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    """A callback for a number of rows, or ``all``."""
    if value is None or value == "all":
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither all nor a number of rows") from None


def words(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """A callback for a list such as ``layer1=layer1,fc=fc``."""
    return None if value is None else tuple(part.strip() for part in value.split(","))


def _limit_pixels(ctx: click.Context, parameter: click.Parameter, value: int | None) -> None:
    """For this command Pillow's limit is the user's; whoever opens a dataset takes it to the processes that decode."""
    if value is None or ctx.resilient_parsing:
        return
    from PIL import Image  # imported here, as help needs none of it

    ctx.call_on_close(functools.partial(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS))
    Image.MAX_IMAGE_PIXELS = value


max_image_pixels = option(
    "--max-image-pixels",
    type=click.IntRange(1),
    expose_value=False,
    callback=_limit_pixels,
    help="Refuse image files of more pixels, width times height.  [default: 89478485, Pillow's]",
)


def data(owner: str = "") -> Decorator:
    """Which samples. ``owner``: who knows its own dataset and size, where nobody says."""
    known = f"{owner}'s own, else " if owner else ""
    size = f"{known}32 for small sets, 224 for folders and ImageNet"
    return together(
        option(
            "--dataset",
            help="digits, cifar10, …, folder:PATH, csv:FILE, parquet:FILE, arrays:PATH, hf:NAME_OR_PATH, "
            "python:module:factory.  "
            f"[default: {known}digits]",
        ),
        option(
            "--test-fraction",
            help="Share of the files that is held out as the test split, of a dataset of files that has none; the same "
            "as folder:PATH,test_fraction=0.2.",
            type=float,
        ),
        option("--data-dir", help="Where torchvision's datasets are, or go.  [default: $SOFTCACHE_DATA or datasets/]"),
        flag("--download", help="Download the dataset if it is missing."),
        option("--size", help=f"Side of a view in pixels.  [default: {size}]", type=int),
        max_image_pixels,
    )


augment = option(
    "--augment",
    help="View recipe: none, flip, crop:pad=4+flip, rrc+flip, randaugment, mixup:alpha=0.2, …  [default: by dataset: "
    "crop for digits, crop+flip for CIFAR, rrc+flip for folders, none for arrays]",
)
normalize = option(
    "--normalize", help="imagenet, dataset, none, or MEANS/STDS.  [default: the weights', else the dataset's]"
)
device = option("--device", help="auto, cpu, cuda, cuda:1, mps.  [default: auto]")
workers = option(
    "--workers", help="Processes that make inputs.  [default: none where indexing does, else one a core]", type=int
)
amp = option(
    "--amp",
    help="Autocast: auto, off, bf16, fp16. auto: bf16 where the device computes it natively and the network gains by "
    "it.  [default: auto]",
)
tf32 = flag("--tf32", help="Let a GPU compute in TF32, which is faster and less precise.")
channels_last = option(
    "--channels-last/--no-channels-last",
    help="Use the channels_last memory format.  [default: where it is faster]",
    default=None,
)
compiled = flag("--compile", help="Compile the network with torch.compile.")
cuda_graphs = option(
    "--cuda-graphs/--no-cuda-graphs",
    help="Record a GPU's training step once and replay it, to the same bits.  [default: for networks of torchvision, "
    "timm and cifar: without code of your own]",
    default=None,
)
expect = option(
    "--expect",
    multiple=True,
    metavar="SHA256",
    help="Stop unless the cache has this pin, the number that `softcache copy` printed: it stands for every byte.",
)
stores = section(
    "Caches in object stores",
    option(
        "--expect",
        multiple=True,
        metavar="SHA256",
        help="Stop unless each cache has this pin, the number that `softcache copy` printed: it stands for every byte; "
        "repeatable.",
    ),
    option(
        "--local-cache",
        metavar="DIR",
        help="Where files from stores are kept, in DIR/softcache-stores.  [default: ~/.cache/softcache/stores]",
    ),
    option("--local-size", metavar="SIZE", help="What that folder may grow to, such as 200GB.  [default: 50GB]"),
)
log_ = option(
    "--log",
    multiple=True,
    metavar="TRACKER",
    help="Tell a tracker of the training while it runs: tensorboard, trackio, wandb, mlflow; with options: "
    "wandb:project=pets, mlflow:uri=http://host:5000; repeatable; each needs its extra, such as [wandb].",
)
json_ = flag("--json", "json_", help="Print the result as JSON.")


fitting = section(
    "Optimization (what isn't given is the preset's; docs/defaults.md says what was measured)",
    option(
        "--preset",
        help="How the network is optimized: crd-cifar, …, as `softcache presets` lists them, or FILE.json. auto: by "
        "the kind and size of the network, its start and the number of rows.  [default: auto]",
    ),
    option("--epochs", help="Passes over the rows.", type=int),
    option("--batch-size", help="Samples per step.", type=int),
    option("--optimizer", help="sgd, adam, adamw."),
    option("--lr", help="Peak learning rate.", type=float),
    option("--weight-decay", help="Weight decay.", type=float),
    option("--momentum", help="Momentum of SGD.", type=float),
    option("--nesterov/--no-nesterov", help="Whether the momentum is Nesterov's.", default=None),
    option("--schedule", help="Learning rate schedule: cosine, step, constant."),
    option("--warmup", help="Epochs of linear rise of the learning rate.", type=float),
    option(
        "--milestones",
        help="Epochs of the step schedule, 150,180,210; without any 5/8, 3/4 and 7/8 of the training.",
        callback=numbers("150,180,210", int),
    ),
    option("--gamma", help="Factor of the learning rate at each milestone.", type=float),
    option("--label-smoothing", help="Label smoothing for the hard-label loss.", type=float),
    option("--clip-grad", help="Largest norm of the gradient, 0 for no bound.", type=float),
    option("--accumulate", help="Batches per optimizer step.  [default: 1]", type=int),
    option("--seed", help="Seed of the weights, the order of rows, and dropout.  [default: 0]", type=int),
)
running = section(
    "Device and speed",
    device,
    amp,
    tf32,
    channels_last,
    compiled,
    cuda_graphs,
    workers,
    option("--start-method", help="How worker processes start: fork, spawn, forkserver.  [default: auto]"),
    option("--resident", help="Keep inputs and targets in memory: auto, device, host, off.  [default: auto]"),
    flag("--profile", help="Trace an epoch and show where its time goes."),
)
