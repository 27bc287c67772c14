"""Hub ids: what is downloaded, the cache without a network, and the words of each failure. No test leaves this machine."""

import fnmatch
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from checkpoints import make_checkpoint
from huggingface_hub import constants, errors, file_download

import codegen_fast
from codegen_fast.weights import hub

REPO = "Salesforce/codegen-350M-mono"
COMMIT = "c0ffee" * 6 + "1234"
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
    snapshot = repo / "snapshots" / COMMIT
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


class SilentHub(ThreadingHTTPServer):
    """Answers the first `answers` questions as the Hub does, and none after them; counts what it was asked."""

    daemon_threads = True

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers, self.asked, self.released = answers, [], threading.Event()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.close_connection = True
        if REPO not in self.path:  # the client asks the Hub about more than what it was told to
            self.send_error(404)
            return
        self.server.asked.append(self.path)
        if len(self.server.asked) > self.server.answers:
            self.server.released.wait()
            return
        described = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": "config.json"}], "private": False, "tags": [],
                     "downloads": 0, "likes": 0}
        listed = [{"type": "file", "path": "config.json", "oid": "0" * 40, "size": 2}]
        text = json.dumps(listed if "/tree/" in self.path else described).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def silent_hub(monkeypatch):
    """The Hub of the real client, which waits 0.2 s for an answer and not at all between two tries."""
    servers, file_template = [], constants.HUGGINGFACE_CO_URL_TEMPLATE

    def start(answers):
        server = SilentHub(answers)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", file_template.replace(constants.ENDPOINT, address))
        monkeypatch.setattr(constants, "ENDPOINT", address)
        return server

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", 0.2)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


def within(seconds, call):
    """The OSError that the call ends with; a thread that does not end is left behind, and fails the test."""
    raised = []

    def run():
        with pytest.raises(OSError) as info:
            call()
        raised.append(info.value)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"no end after {seconds} s"
    return raised[0]


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_hub_that_falls_silent_is_an_error(tmp_path, silent_hub, answers):
    """Before the revision, the list of files, the first file. reliability/trials/hub.py goes through a whole load."""
    server = silent_hub(answers)
    before = dict(huggingface_hub.get_session().event_hooks)
    error = within(120, lambda: hub.resolve(REPO, hub.CONFIG_PATTERNS, cache_dir=tmp_path))
    assert str(error) == (f"{REPO!r} is not a folder, and its files cannot be had from the Hub: the Hub does not answer and it "
                          f"is not (wholly) in the cache; try again later, or give a folder")
    assert len(server.asked[:answers]) == len(set(server.asked[:answers])), "what was answered is not asked again"
    assert huggingface_hub.get_session().event_hooks == before


def test_a_hub_that_never_answers_leaves_the_cache(tmp_path, silent_hub):
    snapshot = tmp_path / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    (snapshot / "model.safetensors").write_text("x")
    server = silent_hub(0)
    assert hub.resolve(REPO, cache_dir=tmp_path).resolve() == snapshot.resolve() and len(server.asked) == 1


def test_only_questions_about_the_repository_are_limited():
    """Another thread's stay as they are, and so do limits that the client sets itself, as for the bytes of a file."""
    client = huggingface_hub.get_session()
    with hub._answered_in_time(REPO), hub._answered_in_time("other/model"):
        limit = client.event_hooks["request"][-2]
    for method, path, given, expected in [
            ("GET", f"/api/models/{REPO}/tree/main", None, float(constants.HF_HUB_ETAG_TIMEOUT)),
            ("GET", f"/{REPO}/resolve/main/model.safetensors", 300.0, 300.0),
            ("GET", "/api/models/some/body", None, None), ("POST", f"/api/models/{REPO}/commit/main", None, None)]:
        request = client.build_request(method, "http://127.0.0.1" + path, timeout=given)
        limit(request)
        assert set(request.extensions["timeout"].values()) == {expected}


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
