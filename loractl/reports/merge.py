"""What `loractl merge` says of the two bases that an adapter can be merged into."""

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loractl import text

if TYPE_CHECKING:
    from loractl.evaluation.difference import LogitDifference

DROWNS = 10.0
"""Above this many times the update, nearly all that changes when the original weight takes the
place of the quantized one is the error of quantization."""


def about_difference(
    logits: "LogitDifference",
    tokens: str,
    losses: tuple[float, float] | None,
    ratios: Mapping[str, float],
) -> dict[str, Any]:
    """The figures as the merged model's loractl.json records them; `losses` are of the base as
    trained and of the original, each with the adapter."""
    found: dict[str, Any] = {
        "tokens": tokens,
        "largest_logit": logits.largest,
        "kl_nats": logits.kl,
        "top1_agreement": logits.top1,
    }
    if losses:
        found["loss"] = dict(zip(("trained", "original"), losses, strict=True))
    if ratios:
        worst = max(ratios, key=lambda name: ratios[name])
        found["error_to_update"] = {
            "layers": len(ratios),
            "median": statistics.median(ratios.values()),
            "highest": ratios[worst],
            "highest_in": worst,
            "above_10": sum(ratio > DROWNS for ratio in ratios.values()),
        }
    return found


def difference_as_text(figures: Mapping[str, Any], kind: str, *, is_original: bool) -> list[str]:
    """The same for the user; `kind` is how the base of training is quantized, `is_original`
    whether the model was merged into the original base."""
    this, other = f"the base as trained ({kind})", "the original base"
    if is_original:
        this, other = other, this
    lines = [
        f"merged into {this}; compared with a merge into {other}, on {figures['tokens']}: logits"
        f" differ by at most {figures['largest_logit']:.3g}, KL {figures['kl_nats']:.3g} nats per"
        f" token, same next token at {figures['top1_agreement']:.1%}"
    ]
    if losses := figures.get("loss"):
        lines[0] += f", loss {losses['trained']:.4g} as trained, {losses['original']:.4g} original"
    if (ratios := figures.get("error_to_update")) is None:
        return lines
    n, drowned = ratios["layers"], ratios["above_10"]
    rows = [
        [f"median of {n}", f"{ratios['median']:.3g}"],
        [f"highest: {ratios['highest_in']}", f"{ratios['highest']:.3g}"],
        [f"above {DROWNS:g}", f"{drowned} of {n}"],
    ]
    lines.append(text.table(["adapted layers", "quantization error / update"], rows))
    if drowned:
        found = (
            f"in {drowned} of {text.counted(n, 'layer')} quantization changed the weight more than"
            f" {DROWNS:g} times as much as the adapter does; in the original weight that update"
            " drowns"
        )
        cure = "; --into trained writes the model that was trained" if is_original else ""
        lines.append(f"{'warning' if is_original else 'note'}: {found}{cure}")
    return lines
