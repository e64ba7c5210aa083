"""How much forward work the order of the filters saves on published tables of candidate scores.

    python benchmarks/published_tables.py --scores FOLDER

FOLDER holds JSON files with n_layers and candidates (position, layer, refusal_score, steering_score, kl_div_score), as
in the run folders of Arditi et al. (2024). Work is counted in forward passes of one prompt set times blocks run,
relative to the published pipeline: three sweeps over all candidates and blocks. The tables hold means only, so early
rejection within a score (a partial sum that already decides) is left out of the first column and estimated, with every
prompt at its mean, in the second.
"""

import argparse
from pathlib import Path

from demur.calibration import read_score_table, select_refusal_direction

BOUND = 18.42
KL_LIMIT, LAYER_FRACTION = 0.1, 0.8


def work(path: Path) -> tuple[str, float, float]:
    """Name of the choice, and how many times less work: by the order alone, and with early rejection."""
    table = read_score_table(path)
    n = table.n_layers
    allowed = [row for row in table.rows if 0 < row.layer < int(LAYER_FRACTION * n)]  # layer 0 is zero by construction
    inducing = [row for row in allowed if row.induce >= 0]
    mild = [row for row in inducing if row.kl <= KL_LIMIT]
    best = min(mild, key=lambda row: row.bypass)
    chosen = select_refusal_direction(table.rows, n_layers=n).selected
    assert (chosen.position, chosen.layer) == (best.position, best.layer)
    naive = 3 * len(table.rows) * n
    ordered = sum(n - row.layer for row in allowed) + n * (len(inducing) + len(mild))
    early = sum((n - row.layer) * (1 if row.induce >= 0 else BOUND / (BOUND - row.induce)) for row in allowed)
    early += n * sum(min(1.0, KL_LIMIT / row.kl) if row.kl else 1.0 for row in inducing)
    early += n * sum((BOUND + best.bypass) / (BOUND + row.bypass) for row in mild)
    return f"position {best.position}, layer {best.layer}", naive / ordered, naive / early


def main() -> None:
    """Print one line for each table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, required=True)
    paths = sorted(parser.parse_args().scores.glob("*.json"))
    print("| table | choice | order of filters | and early rejection (estimated) |\n|---|---|---|---|")
    for path in paths:
        choice, ordered, early = work(path)
        print(f"| {path.stem} | {choice} | {ordered:.1f}x less | {early:.1f}x less |")


if __name__ == "__main__":
    main()
