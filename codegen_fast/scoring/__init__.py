"""What a model makes of given texts: log-probabilities, perplexity, and features (floor 7).

    scores.py       model.score and model.perplexity: what is asked for, as pairs of prompt and completion
    rounds.py       those pairs through the decoder, prompts shared, in bounded memory
    features.py     model.embed
    token_lists.py  texts, lists and tensors as lists of token ids
    logprobs.py     log-probabilities from logits; `generate(return_logprobs=)` uses it as well
"""

from .features import embed
from .rounds import BATCH_TOKENS, Score
from .scores import Perplexity, perplexity, score

__all__ = ["BATCH_TOKENS", "Perplexity", "Score", "embed", "perplexity", "score"]
