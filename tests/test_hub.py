"""Hub ids: what is downloaded, the cache without a network, and the words of each failure. No test uses the network."""

import fnmatch
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from checkpoints import make_checkpoint
from huggingface_hub import errors

import codegen_fast
from codegen_fast.weights import hub

REPO = "Salesforce/codegen-350M-mono"
FILES_2022 = ["config.json", "pytorch_model.bin", "merges.txt", "vocab.json", "README.md", ".gitattributes"]
MANY = ["config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json",
        "flax_model.msgpack", "tf_model.h5", "training_args.bin", "optimizer.pt", "rust_model.ot", "tokenizer.json",
        "checkpoint-500/model.safetensors"]


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """Stands for snapshot_download: writes what matches into a folder and keeps the arguments of the calls."""
    state = SimpleNamespace(files=[], calls=[], folder=tmp_path / "snapshot")

    def snapshot_download(repo, *, allow_patterns, **options):
        state.calls.append((repo, options))
        state.folder.mkdir(exist_ok=True)
        for file in state.files:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (state.folder / file).write_text("x")
        return str(state.folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def test_a_folder_is_taken_as_it_is(tmp_path, fake_hub):
    assert hub.resolve(tmp_path) == tmp_path and hub.resolve(str(tmp_path)) == tmp_path
    assert fake_hub.calls == []


@pytest.mark.parametrize("files, expected", [
    (FILES_2022, ["config.json", "pytorch_model.bin"]),
    (MANY, ["config.json", "generation_config.json", "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors", "model.safetensors.index.json"]),
    ([f for f in MANY if "safetensors" not in f],
     ["config.json", "generation_config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]),
])
def test_one_format_of_weights_is_downloaded_and_nothing_else(fake_hub, files, expected):
    fake_hub.files = files
    folder = hub.resolve(REPO, revision="main", cache_dir="/cache", token="secret", local_files_only=False)
    assert sorted(f.name for f in folder.iterdir()) == expected
    assert all(call == (REPO, {"revision": "main", "cache_dir": "/cache", "token": "secret", "local_files_only": False})
               for call in fake_hub.calls)


def test_other_patterns_take_one_call(fake_hub):
    fake_hub.files = MANY
    folder = hub.resolve(REPO, ["tokenizer.json", "vocab.json"])
    assert [f.name for f in folder.iterdir()] == ["tokenizer.json"] and len(fake_hub.calls) == 1


def test_the_cache_serves_without_a_network(tmp_path):
    """With the real client: a cache as it lies on disk, and local_files_only."""
    repo = tmp_path / "models--Salesforce--codegen-350M-mono"
    snapshot = repo / "snapshots" / ("c0ffee" * 6 + "1234")
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(snapshot.name)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "pytorch_model.bin").write_text("x")
    assert hub.resolve(REPO, cache_dir=tmp_path, local_files_only=True).resolve() == snapshot.resolve()
    message = (r"'Salesforce/codegen-2B-nl' is not a folder, and its files cannot be had from the Hub: it is not "
               r"\(wholly\) in the cache and downloads are off; allow them, or give a folder")
    with pytest.raises(OSError, match=message):
        hub.resolve("Salesforce/codegen-2B-nl", cache_dir=tmp_path, local_files_only=True)


def http_error(kind):
    return kind.__new__(kind)


@pytest.mark.parametrize("error, reason", [
    (http_error(errors.RepositoryNotFoundError), r"the Hub knows no such repository, or it is private; check the"),
    (http_error(errors.GatedRepoError), r"it is gated; ask for access on its page and pass token="),
    (http_error(errors.RevisionNotFoundError), r"the repository has no revision 'v9'"),
    (errors.LocalEntryNotFoundError("x"), r"the Hub cannot be reached and it is not \(wholly\) in the cache; connect"),
    (OSError(28, "No space left on device"), r"\[Errno 28\] No space left on device"),
    (errors.HFValidationError("bad\nname"), r"bad name"),
    (type("ReadTimeout", (errors.HTTPError,), {})("timed out"), r"the Hub stopped answering; ask again, what has come who"),
])
def test_every_failure_names_the_value_and_what_to_do(monkeypatch, error, reason):
    def snapshot_download(*args, **options):
        raise error

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(OSError, match=rf"'{REPO}' is not a folder, and its files cannot be had from the Hub: {reason}"):
        hub.resolve(REPO, revision="v9")


class ReadTimeout(errors.HTTPError):
    """As the Hub's HTTP library names it."""


def test_a_hub_that_never_answers_leaves_the_cache(monkeypatch, fake_hub):
    """reliability/trials/hub.py tries it with the real client, and a server that is silent."""

    def repo_info(*arguments, timeout, **options):
        assert timeout > 0
        raise ReadTimeout("timed out")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    fake_hub.files = MANY
    hub.resolve(REPO)
    assert fake_hub.calls == [(REPO, {"revision": None, "cache_dir": None, "token": None, "local_files_only": True})]

    def empty_cache(*arguments, **options):
        raise errors.LocalEntryNotFoundError("x")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", empty_cache)
    with pytest.raises(OSError, match=r"from the Hub: the Hub does not answer and it is not \(wholly\) in the cache; try aga"):
        hub.resolve(REPO)


def test_config_and_weights_are_of_one_commit(tmp_path, monkeypatch):
    """A repository that changes between the question for its config and the download of its weights."""
    make_checkpoint(tmp_path / "before", n_layer=1)
    hf = make_checkpoint(tmp_path / "after", n_layer=2)
    folders = {hub.CONFIG_PATTERNS: tmp_path / "before", hub.CHECKPOINT_PATTERNS: tmp_path / "after"}
    monkeypatch.setattr("codegen_fast.model.resolve",
                        lambda repo, patterns=hub.CHECKPOINT_PATTERNS, **options: folders[patterns])
    model = codegen_fast.AutoModelForCausalLM.from_pretrained(REPO)
    ids = torch.tensor([[5, 6, 7]])
    assert model.config.n_layer == 2
    torch.testing.assert_close(model(ids).logits, hf(ids).logits)


@pytest.mark.parametrize("value", [
    "", "./nowhere", "/nowhere/model", "../x", "a/b/c", "models\\codegen", "a b/c", "~/x"])
def test_what_is_neither_a_folder_nor_an_id_is_refused_without_asking_the_hub(fake_hub, value):
    with pytest.raises(OSError, match=r"there is no folder '.*', and it is not a Hub id either"):
        hub.resolve(value)
    assert fake_hub.calls == []


def test_a_file_and_a_number_are_refused(tmp_path):
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(OSError, match=r"model.bin is a file; expected the folder that holds config.json"):
        hub.resolve(tmp_path / "model.bin")
    with pytest.raises(TypeError, match=r"the model is 3 \(int\); expected the path of a folder or a Hub id"):
        hub.resolve(3)
