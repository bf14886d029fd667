"""What a name given for a model really is, where that is not a model: each says what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreal_core.errors import ModelLoadError

_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


def refuse_unless_a_model(role: str, name: str, options: Mapping[str, Any]) -> None:
    """Looks at a local file or folder; hub ids pass.

    Raises:
        ModelLoadError: a file, a folder of GGUF files alone, an adapter, or a folder without
            weights.
    """
    path = Path(name).expanduser()
    given = f"the {role} {str(name)!r}"
    if path.is_file():
        raise ModelLoadError(f"{given} is a file. Give the folder of a transformers model.")
    folder = path / str(options.get("subfolder") or "")
    if not folder.is_dir() or options.get("gguf_file"):
        return
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        base = _base_model(folder / "adapter_config.json")
        raise ModelLoadError(
            f"{given} is an adapter (PEFT) for {base}, not a model. Merge it once and give the "
            "merged folder: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), "
            "ADAPTER).merge_and_unload().save_pretrained(FOLDER), and save the tokenizer there."
        )
    if any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return
    files = sorted(one.name for one in folder.glob("*.gguf"))
    if files:
        raise ModelLoadError(
            f"{given} holds its weights as GGUF only ({', '.join(files)}). Name the file itself: "
            f"{str(path / files[0])!r}."
        )
    if (folder / "config.json").exists():
        raise ModelLoadError(
            f"{given} is a folder without weights: it has a config.json and neither *.safetensors "
            "nor *.bin. Copy or download the model as a whole (`hf download ID`)."
        )


def dtype_on_disk(name: str, options: Mapping[str, Any]) -> str | None:
    """The number type of the weights in a local folder, as torch names it; None where that cannot
    be told without reading them."""
    from safetensors import safe_open

    folder = Path(name).expanduser() / str(options.get("subfolder") or "")
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - it is no mapping
                kind = weights.get_slice(key).get_dtype()
                found = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(kind)
                if found is not None:
                    return found
    return None


def _base_model(config: Path) -> str:
    try:
        name = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        name = None
    return repr(name) if name else "some base model"
