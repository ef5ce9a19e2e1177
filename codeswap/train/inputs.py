"""The files whose hashes name a training run: cards that change whenever the data or models behind them do."""

from pathlib import Path

from codeswap.data.faces import training_folders


def codebook_inputs(root: Path) -> list[Path]:
    """Cards of the training shards, their annotations and the perception networks."""
    shards = training_folders(root / "data" / "shards" / "train")
    annotations = root / "data" / "annotations" / "train"
    cards = [folder / "card.json" for folder in shards] + [annotations / folder.name / "card.json" for folder in shards]
    cards.append(root / "models" / "perception" / "card.json")
    missing = [str(path) for path in cards if not path.exists()]
    if missing:
        raise ValueError(f"{missing} do not exist: run `dvc repro`, which makes them first")
    return cards


def swap_inputs(root: Path) -> list[Path]:
    """What Stage 1 reads, and Stage 1."""
    return [*codebook_inputs(root), _card(root / "models" / "codebook", "train_codebook")]


def mask_inputs(root: Path, variant: str) -> list[Path]:
    """What Stage 2 reads, and the variant's Stage 2."""
    return [*swap_inputs(root), _card(root / "models" / "swap" / variant, f"train_swap --variant {variant}")]


def _card(folder: Path, stage: str) -> Path:
    card = folder / "card.json"
    if not card.exists():
        raise ValueError(f"{card} does not exist: run `dvc repro`, or `python -m pipeline.{stage}` first")
    return card
