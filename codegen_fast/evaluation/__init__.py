"""HumanEval, MTPB and perplexity: samples, verdicts and estimates, as the papers define them (floor 8).

    settings.py         what a run is told, and the presets
    paper.py            the figures of the CodeGen paper, and which of its models a checkpoint is
    jsonl.py            files of JSON lines: problems in, and a journal that grows and survives kill -9
    run_folder.py       a run's folder: settings that are checked, journals, one writer at a time
    units.py            what is sampled together, and what a run still lacks
    rows.py             calls of the model whose rows come one by one, by name
    humaneval.py        problems, samples, programs of HumanEval
    mtpb.py             problems, conversations, programs of the Multi-Turn Programming Benchmark
    samplers.py         how to make the sampler of a run, in this process or in another
    ray_workers.py      samplers in the processes of a Ray cluster
    harnesses/          what runs in the sandbox around a generated program, and judges it
    verdicts.py         runs programs, reads verdicts
    estimates.py        pass@k, the best temperature, confidence intervals
    comparison.py       two runs against each other
    tables.py, plot.py  what people read
    perplexity.py       bits per byte, and the divergence of a quantised model

Generated programs run only where a caller hands `verdicts.judge` an executor.
"""
