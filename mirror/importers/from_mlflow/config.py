"""The config of an MLflow run as it is sent to W&B: params are texts in MLflow, numbers and truths there."""

from __future__ import annotations

import json
import re
from typing import Any

_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_WORDS: dict[str, Any] = {"True": True, "False": False, "true": True, "false": False, "None": None}


def typed(text: str) -> Any:
    """What a param's text stands for, if that is plain: a number, a truth value or None; else the text.

    >>> [typed(text) for text in ("3", "0.10", "1e-3", "True", "None", "007", "nan", "[1, 2]", "")]
    [3, 0.1, 0.001, True, None, '007', 'nan', '[1, 2]', '']
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and not text.isdigit() and abs(number := float(text)) != float("inf"):
        return number
    return text


def typed_config(config: str | None) -> str | None:
    """The mirrored config (params as texts, the rest under `_mlflow`) with typed params; the texts of those that are
    none any more are under `_mlflow.params`."""
    if config is None:
        return None
    document: dict[str, Any] = json.loads(config)
    about = document.get("_mlflow", {}).get("value")
    texts = {}
    for key, held in document.items():
        text = held.get("value") if isinstance(held, dict) else None
        if key != "_mlflow" and isinstance(text, str) and (value := typed(text)) is not text:
            held["value"] = value
            texts[key] = text
    if isinstance(about, dict) and texts:
        about["params"] = texts
    return json.dumps(document)
