"""Training checkpoint -> a checkpoint folder as transformers and codegen_fast read it, in float16.

    python export.py --work DIR --to FOLDER [--untrained]

Checks that transformers loads it and computes the training model's logits, and that its tokenizer gives the ids of
`tokenizers`; only then is the folder put in place (written beside and renamed). README.md comes from `card.py`.
"""
import argparse
import hashlib
import json
import shutil
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from model import CodeGen, Config

LIMIT = 10_000_000  # bytes, the whole folder


def stored_qkv(weight):
    """Rows [q; k; v] (3d, d) -> the file's 4 blocks, each [q | v | k] of d/4 rows."""
    q, k, v = (part.chunk(4) for part in weight.chunk(3))
    return torch.cat([torch.cat((q[m], v[m], k[m])) for m in range(4)])


def plain_qkv(weight):
    """The file's 4 blocks -> rows [q; k; v]."""
    parts = weight.chunk(12)
    return torch.cat(parts[0::3] + parts[2::3] + parts[1::3])


def stored_name(name):
    """The training model's parameter name -> the file's."""
    names = {"qkv": "attn.qkv_proj", "out": "attn.out_proj", "fc_in": "mlp.fc_in", "fc_out": "mlp.fc_out", "ln_1": "ln_1"}
    if name.startswith("h."):
        _, layer, module, kind = name.split(".")
        name = f"h.{layer}.{names[module]}.{kind}"
    return name if name.startswith("lm_head") else "transformer." + name


def stored_tensors(model):
    """{name in the file: float16 tensor}."""
    return {stored_name(name): (stored_qkv(p) if "qkv" in name else p).half().contiguous()
            for name, p in model.state_dict().items()}


def load_folder(folder):
    """The training model, in float32, from an exported folder."""
    stored = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    model = CodeGen(Config(**{f.name: config[f.name] for f in fields(Config)}))
    model.load_state_dict({name: (plain_qkv if "qkv" in name else torch.clone)(stored[stored_name(name)]).float()
                           for name in model.state_dict()})
    return model.eval()


def configs(config, end):
    """config.json and generation_config.json."""
    main = {
        "architectures": ["CodeGenForCausalLM"], "model_type": "codegen", "vocab_size": config.vocab_size,
        "n_positions": config.n_positions, "n_ctx": config.n_positions, "n_embd": config.n_embd,
        "n_layer": config.n_layer, "n_head": config.n_head, "n_inner": None, "rotary_dim": config.rotary_dim,
        "activation_function": "gelu_new", "layer_norm_epsilon": config.layer_norm_epsilon, "attn_pdrop": 0.0,
        "embd_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.02, "tie_word_embeddings": False,
        "use_cache": True, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end,
        "tokenizer_class": "CodeGenTokenizer", "torch_dtype": "float16"}
    return main, {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


def sha256(file):
    """Hex digest of a file: ties a checkpoint, its evaluation and its card together."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check(folder, model, text):
    """transformers must agree: the ids, and the logits in float32 on the rounded weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for sample in (text[:2000], "a  b\tc\t\tx   \n\n\n    if é:  # ü\n\t\treturn <|endoftext|>\n  ", ""):
        ids = ours.encode(sample).ids
        assert theirs(sample).input_ids == ids, "transformers' tokenizer gives other ids"
        assert ours.decode(ids, skip_special_tokens=False) == sample == theirs.decode(ids)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rounded = load_folder(folder)
    assert all(torch.equal(p, q.half().float()) for p, q in zip(rounded.parameters(), model.parameters()))
    ids = torch.tensor([ours.encode(text[:800]).ids])
    with torch.no_grad():
        want, got = rounded(ids), reference(ids).logits
    error = ((got - want).norm() / want.norm()).item()
    assert error < 1e-5, f"transformers' logits differ by {error:.1e}"
    print(f"transformers agrees: {type(theirs).__name__}, {type(reference).__name__}, logits within {error:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--untrained", action="store_true", help="a placeholder with random weights")
    args = parser.parse_args()
    if args.untrained:
        torch.manual_seed(0)
        model = CodeGen(Config())
        for p in model.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.02)
        done = {"step": 0, "tokens": 0, "seconds": 0.0}
    else:
        state = torch.load(args.work / "checkpoint.pt", weights_only=True)
        model = CodeGen(Config(**state["config"]))
        model.load_state_dict(state["model"])
        done = state["done"]
    beside = args.to.with_name(args.to.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(args.work / "tokenizer", beside)
    end = Tokenizer.from_file(str(beside / "tokenizer.json")).token_to_id("<|endoftext|>")
    for name, content in zip(("config.json", "generation_config.json"), configs(model.config, end)):
        (beside / name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(stored_tensors(model), beside / "model.safetensors", metadata={"format": "pt"})
    (beside / "model.safetensors").chmod(0o644)  # it is data of a package, not a secret
    check(beside, model, Path(__file__).read_text())
    if (args.to / "README.md").exists():
        shutil.copy(args.to / "README.md", beside)
    size = sum(f.stat().st_size for f in beside.iterdir())
    assert size < LIMIT, f"the folder is {size} bytes, the limit {LIMIT}"
    if args.to.exists():
        shutil.rmtree(args.to)
    beside.rename(args.to)
    done["sha256"] = sha256(args.to / "model.safetensors")
    (args.work / "export.json").write_text(json.dumps(done, indent=1) + "\n")
    print(f"{args.to}: {size} bytes, {done}")


if __name__ == "__main__":
    main()
