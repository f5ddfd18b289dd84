"""The page has the explainer's numbers, nothing of a user's in its code, and asks no network."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rewriter
from passes.errors import RewriteError
from rewriter import DeepExplainer, html_report
from tests.rewriter.html.pages import NASTY, Classifier, Packed, Page, Worded, sequences


def page_of(tmp_path: Path, explainer: DeepExplainer, X: Any, **asked: Any) -> Page:
    report = html_report(explainer, X, tmp_path / "report.html", **asked)
    assert report.path.stat().st_size == report.bytes
    return Page(report.path)


def test_has_the_numbers_of_the_explainer(tmp_path: Path) -> None:
    model, x = Classifier().double(), sequences(3)
    explainer = DeepExplainer(model, sequences(5), output_names=["up", "down"])
    page = page_of(
        tmp_path, explainer, x, feature_names=list("abcd"), sample_names=["first", "second", "third"]
    )
    values, data = explainer.shap_values(x), page.data
    assert data["outputs"] == ["up", "down"]
    assert data["inputs"] == [{"name": "input", "features": [*"abcd"], "rows": [*"012345"]}]
    for m, sample in enumerate(data["samples"]):
        assert sample["name"] == ["first", "second", "third"][m]
        # Nine digits of each.
        assert np.allclose(sample["f"], model(x)[m].detach(), rtol=1e-8)
        assert np.allclose(sample["base"], explainer.expected_value, rtol=1e-8)
        (shown,) = sample["inputs"]
        assert np.allclose(shown["data"], x[m].ravel(), rtol=1e-8)
        assert np.allclose(shown["values"], values[m].reshape(24, 2).T, rtol=1e-8)
        sums = np.sum(shown["values"], 1) + sample["base"]
        assert np.allclose(sums, sample["f"], rtol=0, atol=1e-7)


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    explainer = DeepExplainer(Classifier().double(), sequences(5), output_names=NASTY[:2])
    asked = {
        "feature_names": NASTY,
        "sample_names": NASTY[:3],
        "row_names": [*NASTY, "", "x"],
        "title": NASTY[0],
    }
    page = page_of(tmp_path, explainer, sequences(3), **asked)
    plain = page_of(tmp_path, DeepExplainer(Classifier().double(), sequences(5)), sequences(3))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert page.texts["title"] == page.texts["h1"] == NASTY[:1]
    assert page.data["inputs"][0]["features"] == NASTY
    assert page.data["outputs"] == NASTY[:2]
    for source in page.source.split('id="data">')[1].split("</script>")[:1]:
        assert not set("<>&\u2028") & set(source)


def test_loads_nothing_and_runs_its_own_script_only(tmp_path: Path) -> None:
    page = page_of(tmp_path, DeepExplainer(Classifier().double(), sequences(5)), sequences(2))
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "style"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert "url(" not in page.source
    assert "import" not in "".join(page.texts["style"])
    # The name of SVG is an address that is no request.
    assert set(re.findall(r"https?://[^\s\"']*", page.source)) == {"http://www.w3.org/2000/svg"}
    (policy,) = [a["content"] for _, a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    for kind, text in (("script", page.texts["script"][-1]), ("style", page.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_can_be_read_without_eyes_and_on_a_phone(tmp_path: Path) -> None:
    page = page_of(tmp_path, DeepExplainer(Classifier().double(), sequences(5)), sequences(2))
    assert page.of("html")[0][1]["lang"] == "en"
    assert "width=device-width" in str([a.get("content") for _, a in page.of("meta")])
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert len(page.of("h1")) == len(page.of("main")) == 1
    for _, attributes in page.of("section"):
        assert attributes.get("aria-label") or attributes["aria-labelledby"] in ids
    assert len(page.of("caption")) == len(page.of("table")) == 3
    assert all(a.get("scope") in ("col", "row") for _, a in page.of("th"))
    assert all(text.strip() for text in page.texts["button"])
    assert len(page.of("label")) == len(page.of("select"))
    script = page.texts["script"][-1]
    # What the script asks for is there.
    assert set(re.findall(r"at\(\"(\w+)\"\)", script)) <= set(ids)
    assert "prefers-color-scheme: dark" in page.texts["style"][0]


def test_says_what_was_proven(tmp_path: Path) -> None:
    explainer = DeepExplainer(Classifier(), sequences(5).float())
    page = page_of(tmp_path, explainer, sequences(2).float(), blocks=2, seed=3)
    # The cells of the other tables are the script's.
    found = page.texts["td"]
    told = dict(zip(page.texts["th"][-len(found) :], found, strict=True))
    gap = re.match(
        r"largest gap (\S+), ", told["Base value and shares sum to the prediction of the model's own code"]
    )
    differs = re.match(
        r"largest difference (\S+) ", told["The rewritten model gives what the model's own code gives"]
    )
    assert gap
    assert differs
    # Rounding of float32 for numbers of the order of 1.
    assert 0 < float(gap[1]) < 1e-6
    assert float(differs[1]) < 1e-6
    assert told["References"] == "5"
    assert told["Nearer to Shapley values by"] == "blocks=2, seed=3"
    assert told["Version of torch"] == torch.__version__
    assert told["Weights"].startswith("sha256:")


def test_what_does_not_add_up_is_not_written(tmp_path: Path) -> None:
    class Zeta(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.zeta(x * x + 2, x * x + 1).sum(1)

    explainer = DeepExplainer(Zeta(), torch.randn(5, 3))
    with pytest.raises(RewriteError):
        html_report(explainer, torch.randn(2, 3), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_lengths_have_a_share_of_their_own(tmp_path: Path) -> None:
    explainer = DeepExplainer(Packed().double(), [sequences(4), torch.tensor([6, 3, 2, 5])])
    page = page_of(tmp_path, explainer, [sequences(2), torch.tensor([4, 6])])
    assert [each["features"] for each in page.data["inputs"]] == [["x0", "x1", "x2", "x3"], ["x0"]]
    for sample in page.data["samples"]:
        shares = [sum(each["values"][1]) for each in sample["inputs"]]
        assert sample["base"][1] + sum(shares) == pytest.approx(sample["f"][1], abs=1e-7)
        assert shares[1]


def test_masks_without_shares_are_left_out(tmp_path: Path) -> None:
    class Masked(Classifier):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x * mask.unsqueeze(-1))

    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    explainer = DeepExplainer(Masked().double(), [sequences(4), mask.expand(4, 6)])
    page = page_of(tmp_path, explainer, [sequences(2), mask.expand(2, 6)])
    (shown,) = page.data["samples"][0]["inputs"]
    assert not np.reshape(shown["values"], (2, 6, 4))[:, 3:].any()


def test_tokens_name_the_rows_of_their_sample(tmp_path: Path) -> None:
    model = Worded()
    explainer = DeepExplainer((model, model.embedding), torch.zeros(1, 3, dtype=torch.long))
    words = [["a", "b", "c"], ["d", "e"]]
    page = page_of(tmp_path, explainer, torch.tensor([[1, 2, 3], [4, 5, 0]]), row_names=words)
    assert [each["inputs"][0]["rows"] for each in page.data["samples"]] == [words[0], ["d", "e", ""]]
    for sample in page.data["samples"]:
        total = sample["base"][0] + sum(sample["inputs"][0]["values"][0])
        assert total == pytest.approx(sample["f"][0], abs=1e-6)


def test_pictures_and_single_numbers_are_grids(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    page = page_of(tmp_path, DeepExplainer(model, torch.randn(4, 2, 2, 3)), torch.randn(1, 2, 2, 3))
    assert page.data["inputs"][0]["rows"] == ["0,0", "0,1", "1,0", "1,1"]
    flat = DeepExplainer(model, torch.randn(4, 12), feature_names=[f"f{k}" for k in range(12)])
    assert page_of(tmp_path, flat, torch.randn(1, 12)).data["inputs"][0]["rows"] == [""]


class TestSize:
    def test_samples_are_left_out_and_that_is_told(self, tmp_path: Path) -> None:
        explainer, x = DeepExplainer(Classifier().double(), sequences(5)), sequences(40)
        report = html_report(explainer, x, tmp_path / "report.html", max_bytes=40_000)
        assert report.bytes <= 40_000
        assert 1 < report.samples == 40 - report.left_out
        page = Page(report.path)
        assert len(page.data["samples"]) == report.samples
        assert f"below 0.04 MB: {report.left_out} of 40 samples are left out." in page.source
        assert str(report) == f"{report.path}: {report.samples} samples, {report.left_out} more left out " + (
            "for their size, 0.04 MB"
        )

    def test_one_sample_has_to_fit(self, tmp_path: Path) -> None:
        explainer = DeepExplainer(Classifier().double(), sequences(5))
        with pytest.raises(
            RewriteError, match=r"a single sample takes 0\.0 MB, more than max_bytes of 0.01 MB"
        ):
            html_report(explainer, sequences(3), tmp_path / "report.html", max_bytes=10_000)
        assert not (tmp_path / "report.html").exists()


def test_somewhere_to_write_is_looked_for_before_anything_is_explained(tmp_path: Path) -> None:
    explainer = DeepExplainer(Classifier().double(), sequences(5))
    for path in (tmp_path, tmp_path / "none" / "report.html"):
        with pytest.raises(RewriteError, match="expected the name of a file"):
            # Nothing that could be explained.
            html_report(explainer, "x", path)


def test_what_goes_around_a_layer_is_told(tmp_path: Path) -> None:
    class Residual(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x.sum((1, 2)).unsqueeze(1)

    for model, around in ((Residual().double(), True), (Classifier().double(), False)):
        page = page_of(tmp_path, DeepExplainer((model, model.gru), sequences(5)), sequences(2))
        assert page.texts["td"][0].endswith(", which goes around the explained layer") is around
        for sample in page.data["samples"]:
            total = np.sum(sample["inputs"][0]["values"], 1) + sample["base"]
            assert np.allclose(total, sample["f"], rtol=0, atol=1e-7) is not around


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"feature_names": ["a"]},
            "feature_names: expected 4 names, one per feature, or 24, one per element, got 1",
        ),
        ({"sample_names": ["a"]}, "sample_names: expected 2 names, one per sample, got 1"),
        ({"row_names": ["a"]}, "row_names: expected 6 names, one per row, got 1"),
        ({"row_names": [["a"]]}, "row_names: expected 6 names, or at most as many for each of 2 samples"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, asked: Any, message: str) -> None:
    explainer = DeepExplainer(Classifier().double(), sequences(5))
    with pytest.raises(RewriteError, match=re.escape(message)):
        html_report(explainer, sequences(2), tmp_path / "report.html", **asked)
    with pytest.raises(RewriteError, match="expected samples to show, got none"):
        html_report(explainer, sequences(0), tmp_path / "report.html")


def test_is_public() -> None:
    assert rewriter.html_report is html_report
