"""dvc.yaml says exactly what each stage imports and reads, so that nothing stale is kept and nothing is redone."""

import ast
import importlib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
STAGES: dict[str, dict] = {
    name: stage.get("do", stage) for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}


def module_of(stage: str) -> str:
    """The `pipeline.*` module that a stage's command runs."""
    words = STAGES[stage]["cmd"].split()
    return words[words.index("-m") + 1]


def file_of(name: str) -> Path | None:
    path = ROOT / Path(*name.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


def import_closure(module: str) -> set[str]:
    """Files of this project that `module` imports, directly or through others, at the top or inside functions."""
    found: set[Path] = set()
    waiting = [file_of(module)]
    while waiting:
        path = waiting.pop()
        if path is None or path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting += [file_of(name) for name in names if name.split(".")[0] in ("codeswap", "pipeline")]
    return {str(path.relative_to(ROOT)) for path in found}


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_import_closure(stage: str) -> None:
    declared = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    needed = import_closure(module_of(stage))
    assert declared == needed, f"write these under deps of {stage}:\n" + "\n".join(
        f"      - {d}" for d in sorted(needed)
    )


def _field(param: str) -> str:
    """The field of a stage's Params that a param of dvc.yaml fills."""
    return "dataset" if param.startswith("datasets.") else param.removeprefix("perception.")


@pytest.mark.parametrize("stage", STAGES)
def test_declared_params_are_the_groups_the_stage_reads(stage: str) -> None:
    fields = set(importlib.import_module(module_of(stage)).PARAMS.model_fields)
    declared = {_field(p) for p in STAGES[stage].get("params", [])}
    assert declared == fields


def test_every_group_of_params_yaml_is_read_by_some_stage() -> None:
    groups = set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    templated = {"datasets", "trainsets", "testsets", "variants"}
    read = {field for stage in STAGES for field in importlib.import_module(module_of(stage)).PARAMS.model_fields}
    assert groups - templated == read - {"dataset", "landmarks"}


@pytest.mark.parametrize("profile", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_profile_trains_on_from_folders_that_its_stages_depend_on(profile: Path) -> None:
    params = yaml.safe_load(profile.read_text())
    for stage in ("codebook", "swap"):
        start = params[stage].get("start_from")
        assert start is None or start in STAGES[stage]["deps"], f"{stage}.start_from: another model would train nothing"
