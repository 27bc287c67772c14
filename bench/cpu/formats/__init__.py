"""A checkpoint of CodeGen in the formats of the peers. None of these files needs codegen_fast.

source.py       the checkpoint's tensors, q/k/v put straight
ctranslate.py   CTranslate2's folder
openvino_ir.py  OpenVINO's graph and weights
ggml.py         the file of ggml's GPT-J
"""
