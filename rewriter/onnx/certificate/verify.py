"""Check an exported file against its certificate, on any machine."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.errors import RewriteError
from rewriter.onnx.certificate.contents import FORMAT, certificate_path, digest_of, file_facts, model_facts
from rewriter.onnx.certificate.probe import difference, make_inputs
from rewriter.onnx.graph import RECURRENT
from rewriter.onnx.runtime.session import Session, SessionError

# What a certificate has to hold.
_KINDS = {"file": dict, "model": dict, "probes": list, "tolerance": float, "checks": list, "versions": dict}


@dataclass(frozen=True)
class Verification:
    """What :func:`rewriter.verify` found; ``bool()`` of it is the verdict, ``print`` shows it.

    Args:
        path: the file.
        problems: what does not hold.
        checked: what was checked and holds.
        unchecked: what could not be checked here, and why.

    Example:
        >>> found = Verification("a.onnx", ("the file has 3 bytes, the certificate says 4",), (), ())
        >>> bool(found)
        False

    """

    path: str
    problems: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        verdict = "does not hold" if self.problems else "holds"
        lines = [f"{self.path}: the certificate {verdict}"]
        for label, texts in (("no", self.problems), ("yes", self.checked), ("not checked", self.unchecked)):
            lines += [f"  {label}: {text}" for text in texts]
        return "\n".join(lines)


def verify(path: str | os.PathLike[str]) -> Verification:
    """Check a file that :func:`rewriter.export_onnx` wrote against the certificate beside it.

    The certificate must be as it was written, and size, hash, weights, operators, inputs and outputs those
    that it states; onnxruntime runs inputs whose results in torch the certificate holds. Neither torch nor
    the model is needed. What needs onnx or onnxruntime is left out, and said to be, where they are missing.

    Args:
        path: the ONNX file.

    Returns:
        What holds and what does not.

    Raises:
        RewriteError: if there is no such file, or no certificate beside it.

    Example:
        >>> import tempfile, torch
        >>> from rewriter import export_onnx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_onnx(torch.nn.Linear(3, 2), torch.randn(4, 3), f"{folder}/m.onnx")
        ...     bool(verify(f"{folder}/m.onnx"))
        True

    """
    file = Path(path)
    content = _read(file, "the path of a file that export_onnx wrote")
    certificate = _certificate(file)
    if certificate.get("sha256") != digest_of(certificate):
        # What it says can no longer be trusted, nor that it says all.
        return Verification(os.fspath(path), ("the certificate was changed after it was written",), (), ())
    problems: list[str] = []
    checked: list[str] = []
    unchecked: list[str] = []

    def compare(what: str, stated: Any, found: Any) -> None:
        if stated == found:
            checked.append(what)
        else:
            problems.append(f"{what}: the certificate says {_shown(stated)}, the file has {_shown(found)}")

    for what, found in file_facts(content).items():
        compare(
            {"size": "size in bytes", "sha256": "hash of the file"}[what], certificate["file"][what], found
        )
    if importlib.util.find_spec("onnx") is None:
        unchecked.append("weights, operators, inputs and outputs: onnx is not installed")
    else:
        _check_model(content, certificate["model"], compare, problems, checked)
    if importlib.util.find_spec("onnxruntime") is None:
        unchecked.append("what it computes: onnxruntime is not installed")
    elif not certificate["probes"]:
        unchecked.append("what it computes: no input could be described in a few numbers")
    else:
        _run_probes(content, certificate, problems, checked)
    return Verification(os.fspath(path), tuple(problems), tuple(checked), tuple(unchecked))


def _check_model(
    content: bytes, stated: Mapping[str, Any], compare: Any, problems: list[str], checked: list[str]
) -> None:
    import onnx

    try:
        proto = onnx.load_from_string(content)
        onnx.checker.check_model(proto)
        facts = model_facts(proto)
    except Exception as error:  # what protobuf and onnx raise has no common base but this
        problems.append(f"onnx does not read the file: {type(error).__name__}: {error}")
        return
    checked.append("onnx.checker takes the model")
    for what, found in facts.items():
        compare({"weights": "hash of the weights"}.get(what, what), stated[what], found)
    recurrent = sorted(RECURRENT & set(facts["operators"]))
    if recurrent:
        problems.append(f"recurrent operators: {', '.join(recurrent)}")


def _run_probes(
    content: bytes, certificate: Mapping[str, Any], problems: list[str], checked: list[str]
) -> None:
    tolerance = certificate["tolerance"]
    try:
        with Session(content) as session:
            for probe in certificate["probes"]:
                found = session.run(make_inputs(probe["inputs"]))
                worst = max(map(difference, probe["outputs"], found), default=0.0)
                text = f"onnxruntime and torch differ by {worst:.1e} (relative) at {probe['sizes']}"
                if worst <= tolerance and len(found) == len(probe["outputs"]):
                    checked.append(text)
                else:
                    problems.append(f"{text}, more than {tolerance:.0e}")
    except SessionError as error:
        problems.append(f"onnxruntime does not run the file: {error}")


def _certificate(file: Path) -> dict[str, Any]:
    beside = certificate_path(file)
    read = _read(beside, "a certificate beside the file, as export_onnx writes it")
    try:
        certificate = json.loads(read)
        wrong = [key for key, kind in _KINDS.items() if not isinstance(certificate[key], kind)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RewriteError(f"verify: {beside} is no certificate: {type(error).__name__}: {error}") from None
    if wrong:
        raise RewriteError(
            f"verify: {beside} is no certificate: {wrong[0]} is {_shown(certificate[wrong[0]])}"
        )
    if certificate.get("format") != FORMAT:
        raise RewriteError(
            f"verify: {beside} has the format {certificate.get('format')!r}, this version reads {FORMAT!r}"
        )
    return dict(certificate)


def _read(file: Path, expected: str) -> bytes:
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise RewriteError(f"verify: expected {expected}, got {file}: {error}") from None


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."
