"""One short table of everything that was measured, for the end of bench/gpu_check.sh. Needs neither torch nor a GPU."""

from __future__ import annotations

from bench.gpu import gates, results


def lines() -> list[str]:
    found = results.read(*dict.fromkeys((results.FOLDER, results.output_folder())))
    stages = sorted({(result["machine"]["name"], result["stage"]) for result in found})
    text = [f"results: {', '.join(f'{stage} ({name})' for name, stage in stages) or 'none'}"]
    evaluated = gates.evaluate(found)
    for gate, figure, _ in evaluated:
        if figure is not None:
            verdict = "holds" if gate.holds(figure) else "MISSED"
            figure, needs = gate.show.format(figure), gate.show.format(gate.needs)
            text.append(f"{verdict:<7} {figure:>9} of {needs:>9}  {gate.text}")
    missing = sum(figure is None for _, figure, _ in evaluated)
    return text + [f"{missing} of {len(evaluated)} gates not measured"]


if __name__ == "__main__":
    print("\n".join(lines()))
