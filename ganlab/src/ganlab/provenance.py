"""What an output says of itself: software, models, scene, and which of its pixels are generated.

These are tags in the default domain of a GeoTIFF, which ``gdalinfo`` and ``rasterio`` show, so
that a reader who gets nothing but the file can tell that it is synthetic.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ganlab.data.geotiff import SOFTWARE
from ganlab.tasks import TASKS
from ganlab.tasks.base import Task
from ganlab.training.checkpoints import digest

KINDS = {
    "image": "Synthetic image",
    "label": "Synthetic class map",
    "alpha": "Estimated cloud opacity",
    "mask": "Mask",
}


@dataclass(frozen=True)
class Model:
    """A trained model, as its outputs name it."""

    task: str
    run: str
    weights: str
    """Checksum of the generator's tensors as they were loaded: averaged ones if it has those."""


def model_of(task: Task, run: Path) -> Model:
    """The model that was loaded from a run directory, or from a checkpoint in one."""
    folder = run.parent.parent if run.is_file() else run
    name = next((name for name, kind in TASKS.items() if type(task) is kind), type(task).__name__)
    weights = digest(task.generator.state_dict())
    return Model(name, folder.resolve().name, f"sha256:{weights[:16]}")


def output_tags(
    task: Task,
    model: Model,
    scenes: Sequence[Path],
    targets: Sequence[Path],
    filler: Model | None = None,
) -> list[dict[str, str]]:
    """Tags of each output of ``apply``, in the order of ``targets``.

    Args:
        task: the task that made them.
        model: its model.
        scenes: the files of the scene that it started from.
        targets: where the outputs will be, the image first; with a filler, the origin last.
        filler: the model that filled what the first one could not see through.
    """
    scene = ", ".join(path.name for path in scenes)
    names = [path.name for path in targets]
    common = {
        "TIFFTAG_SOFTWARE": SOFTWARE,
        "GANLAB_TASK": model.task,
        "GANLAB_RUN": model.run,
        "GANLAB_WEIGHTS": model.weights,
        "GANLAB_SCENE": scene,
        "GANLAB_FILES": ", ".join(names),
    }
    makers = f"the {model.task} model {model.run}"
    if filler is not None:
        common["GANLAB_FILL_TASK"] = filler.task
        common["GANLAB_FILL_RUN"] = filler.run
        common["GANLAB_FILL_WEIGHTS"] = filler.weights
        makers += f" and the {filler.task} model {filler.run}"
    origin = f"by {SOFTWARE} with {makers} from {scene}"
    texts = [_first(task, names, origin)]
    for field in task.outputs[1:]:
        texts.append(_other(field.source.kind, names[0], origin))
    if filler is not None:
        texts.append(_other("mask", names[0], origin))
    return [common | text for text in texts]


def set_mark(tags: Sequence[Mapping[str, str]], totals: Sequence[int]) -> str:
    """A mark of outputs that were written together; others have another one, equal ones its own.

    Args:
        tags: tags of each output.
        totals: the sums of the bytes of their pixels.
    """
    text = repr([sorted(tag.items()) for tag in tags]) + repr(list(totals))
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _first(task: Task, names: Sequence[str], origin: str) -> dict[str, str]:
    """What the first output, an image or a class map, says of its pixels."""
    kind = KINDS[task.outputs[0].source.kind]
    if not task.keeps or len(names) == 1:
        return {
            "TIFFTAG_IMAGEDESCRIPTION": f"{kind}: every valid pixel was generated {origin}",
            "GANLAB_GENERATED": "all",
        }
    # Holes have a mask, clouds their opacity; with a filler, the origin comes last.
    where = f"{names[-1]} is not 0"
    if task.hole is None and len(names) == len(task.outputs):
        where = f"{names[-1]} shows cloud"
    return {
        "TIFFTAG_IMAGEDESCRIPTION": (
            f"Partly synthetic image: the pixels where {where} were generated {origin}; the "
            "others are those of the scene"
        ),
        "GANLAB_GENERATED": f"see {names[-1]}: where {where}",
    }


def _other(kind: str, image: str, origin: str) -> dict[str, str]:
    """What a mask or the opacity of clouds says of itself."""
    if kind == "mask":
        return {
            "TIFFTAG_IMAGEDESCRIPTION": (
                f"Mask: not 0 where the pixel of {image} was generated {origin}"
            ),
            "GANLAB_GENERATED": f"none: it says which pixels of {image} are",
        }
    return {
        "TIFFTAG_IMAGEDESCRIPTION": f"{KINDS[kind]}: every valid pixel was generated {origin}",
        "GANLAB_GENERATED": "all",
    }
