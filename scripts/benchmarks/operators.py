#!/usr/bin/env python3
"""Prints what `diffused benchmark --operators --json` measured as Markdown, with --torch beside PyTorch's time for the same operators.

    operators.py REPORT.json [--torch]

PyTorch runs on the GPU, in the report's precision, where the report is of one, else on the processor in float32; pictures have their channels
innermost, as here. Only `torch` is needed, and without it the table is printed without its columns. Operators that are
not PyTorch's own (GEGLU's gate, a residual, the time embedding's bias) are timed there as the operations a model would call one after the other.
"""

import argparse
import json
import statistics
import time


def torch_call(torch, row, device, dtype):
    """A function that calls PyTorch's counterpart of an operator; None where there is none."""
    functional, extents = torch.nn.functional, row["extents"]

    def random(*shape):
        return torch.rand(*shape, device=device).sub(0.5).to(dtype)

    kind = row["kind"]
    if kind.startswith("conv"):
        e = extents
        upsampled = e["upsampled"] == 1
        size = [(e["height"] + 1) // 2, (e["width"] + 1) // 2] if upsampled else [e["height"], e["width"]]
        x = random(e["batch"], e["in_channels"], *size).to(memory_format=torch.channels_last)
        kernel = e["kernel_size"]
        weight = random(e["out_channels"], e["in_channels"], kernel, kernel).to(memory_format=torch.channels_last)
        bias = random(e["out_channels"])
        residual = random(e["batch"], e["out_channels"], *[-(-side // e["stride"]) for side in (e["height"], e["width"])])
        residual = residual.to(memory_format=torch.channels_last) if "residual" in row["shape"] else None
        time_bias = random(e["batch"], e["out_channels"], 1, 1) if "time" in row["shape"] else None

        def convolution():
            y = functional.interpolate(x, size=(e["height"], e["width"]), mode="nearest") if upsampled else x
            y = functional.conv2d(y, weight, bias, stride=e["stride"], padding=kernel // 2)
            for added in (residual, time_bias):
                y = y if added is None else y + added
            return y

        return convolution
    if kind.startswith("linear"):
        gated = extents["geglu"] == 1
        x = random(extents["rows"], extents["in_channels"])
        outputs = extents["out_channels"] * (2 if gated else 1)
        weight, bias = random(outputs, extents["in_channels"]), random(outputs)
        residual = random(extents["rows"], outputs) if "residual" in row["shape"] else None

        def linear():
            y = functional.linear(x, weight, bias)
            if gated:
                value, gate = y.chunk(2, dim=-1)
                return value * functional.gelu(gate)
            return y if residual is None else y + residual

        return linear
    if kind.endswith("attention"):
        shape = [extents["batch"], extents["heads"], 0, extents["head_size"]]
        q, k, v = (random(*shape[:2], extents[name], shape[3]) for name in ("queries", "keys", "keys"))
        causal = extents["causal"] == 1
        return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    if kind == "group norm":
        x = random(extents["batch"], extents["channels"], extents["pixels"], 1).to(memory_format=torch.channels_last)
        weight, bias = random(extents["channels"]), random(extents["channels"])

        def group_norm():
            y = functional.group_norm(x, extents["groups"], weight, bias)
            return functional.silu(y) if extents["silu"] else y

        return group_norm
    if kind == "layer norm":
        x, channels = random(extents["rows"], extents["channels"]), extents["channels"]
        weight, bias = random(channels), random(channels)
        return lambda: functional.layer_norm(x, [channels], weight, bias)
    if kind == "concatenation":
        parts = [random(extents["rows"], extents[name]) for name in ("channels", "other_channels")]
        return lambda: torch.cat(parts, dim=-1)
    return None


def milliseconds(torch, call, device, budget=0.2):
    """The median time of a call, measured as OperatorBenchmark.swift does it."""

    def sample(calls):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / calls

    sample(1)
    first = sample(1)
    if first >= budget:
        return 1000 * first
    calls = min(max(int(0.004 / max(first, 1e-7)), 1), 200)
    count = min(max(int(budget / (first * calls)), 3), 15)
    return 1000 * statistics.median(sample(calls) for _ in range(count))


def add_torch(report):
    """Puts PyTorch's milliseconds a call into every row that has a counterpart; says what it ran on, or why it did not."""
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed, so there is nothing beside diffused's own times."
    torch.set_grad_enabled(False)
    device = "cpu" if report["family"] == "cpu" or not torch.cuda.is_available() else "cuda"
    dtype = getattr(torch, report["precision"])
    if device == "cpu" and dtype != torch.float32:
        dtype = torch.float32
    for part in report["parts"]:
        for row in part["operators"]:
            call = torch_call(torch, row, device, dtype)
            if call:
                row["torch"] = milliseconds(torch, call, device)
            del call
    name = torch.cuda.get_device_name() if device == "cuda" else f"the processor, {torch.get_num_threads()} threads"
    return f"PyTorch {torch.__version__} in {str(dtype).replace('torch.', '')} on {name}."


def line(rows, part, title):
    total = sum(row["total_milliseconds"] for row in rows)
    gflop = sum(row["gflop"] * row["calls"] for row in rows)
    gigabytes = sum(row["gigabytes"] * row["calls"] for row in rows)
    share = sum(row["share_of_peak"] * row["total_milliseconds"] for row in rows) / total
    cells = [
        title,
        sum(row["calls"] for row in rows),
        f"{total:.2f}",
        f"{100 * total / part['milliseconds']:.1f} %",
        f"{1000 * gflop / total:.0f}" if gflop else "-",
        f"{1000 * gigabytes / total:.1f}",
        f"{100 * share:.0f} %",
    ]
    counterparts = [row for row in rows if "torch" in row]
    if any("torch" in row for row in part["operators"]):
        ours = sum(row["total_milliseconds"] for row in counterparts)
        theirs = sum(row["torch"] * row["calls"] for row in counterparts)
        cells += [f"{theirs:.2f}", f"{ours / theirs:.2f}"] if counterparts else ["-", "-"]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report")
    parser.add_argument("--torch", action="store_true", help="measure PyTorch on the same operators")
    parser.add_argument("--rows", type=int, default=20, help="shapes shown of each part (default 20)")
    arguments = parser.parse_args()
    with open(arguments.report) as file:
        report = json.load(file)
    note = add_torch(report) if arguments.torch else None

    peak = report["peak"]
    matrix = f", {peak['matrix_gflops']:.0f} GFLOP/s products of {report['precision']}" if peak.get("matrix_gflops") else ""
    print(
        f"{report['device']}, {report['family']} kernels, {report['precision']}, {report['width']}x{report['height']}. Peak: "
        f"{peak['float_gflops']:.0f} GFLOP/s float32 multiply-adds in registers{matrix}, {peak['copy_gbs']:.1f} GB/s copied."
    )
    if note:
        print(note)
    for part in report["parts"]:
        heads = ["calls", "ms", "share", "GFLOP/s", "GB/s", "of the peak"]
        if any("torch" in row for row in part["operators"]):
            heads += ["PyTorch ms", "ratio"]
        kinds = {}
        for row in part["operators"]:
            kinds.setdefault(row["kind"], []).append(row)
        ordered = sorted(kinds.items(), key=lambda item: -sum(row["total_milliseconds"] for row in item[1]))
        for title, rows in (
            (part["name"], [("all", part["operators"]), *ordered]),
            ("the slowest shapes", [(f"{row['kind']}, {row['shape']}", [row]) for row in part["operators"][: arguments.rows]]),
        ):
            print(f"\n| {title} | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
            for name, group in rows:
                print(line(group, part, name))


if __name__ == "__main__":
    main()
