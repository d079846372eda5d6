// 3x3 convolutions by Winograd's minimal filtering: Kernels/winograd.cl.

internal import OpenCLRuntime

extension TensorDevice {
    /// Whether a convolution is large enough for Winograd's way to win, and of a shape its kernels take.
    ///
    /// - Parameter walked: Height and width of the picture the kernel walks over.
    func usesWinograd(
        _ weights: ConvolutionWeights,
        stride: Int,
        batch: Int,
        walked: (height: Int, width: Int)
    ) -> Bool {
        guard let leastTiles = tuning.winogradTiles, weights.kernelSize == 3, stride == 1 else { return false }
        let fits = weights.inChannels % tuning.vectorWidth == 0 && weights.outChannels % tuning.vectorWidth == 0
        // Direct products of bfloat16 pairs are twice as fast, so that it takes a larger picture to beat them.
        let least = weights.isPaired ? 2 * leastTiles : leastTiles
        return fits && min(weights.inChannels, weights.outChannels) >= 4 * tuning.vectorWidth
            && batch * winogradTiles(walked) >= least
    }

    /// Tiles of 4 x 4 pixels that cover one picture.
    fileprivate func winogradTiles(_ size: (height: Int, width: Int)) -> Int {
        (size.height + 3) / 4 * ((size.width + 3) / 4)
    }
}

extension Tensor {
    /// Enqueues y = f(conv(x) + bias + channelBias) + residual; see `Tensor.convolution`.
    ///
    /// The weights are transformed anew for every call: that costs a few percent of the products and saves four times their memory.
    ///
    /// - Parameters:
    ///   - walked: Height and width of y.
    ///   - macros: Those of convolution.cl, for what is fused and how x and the weights are stored.
    func enqueueWinograd(
        _ weights: ConvolutionWeights,
        into y: Tensor,
        walked: (height: Int, width: Int),
        macros: [String: Int],
        channelBias: Tensor?,
        residual: Tensor?
    ) throws {
        let tuning = device.tuning
        let panels = (weights.outChannels + tuning.panelWidth - 1) / tuning.panelWidth
        let pitch = panels * tuning.panelWidth
        let tiles = shape[0] * device.winogradTiles(walked)
        // Whole register tiles, so that only the last strip has a remainder.
        let wanted = tuning.winogradStripBytes / (36 * 4 * (channels + pitch)) / tuning.tileRows * tuning.tileRows
        let strip = min(tiles, max(wanted, tuning.tileRows))

        let file = "winograd.cl"
        let macros = macros.merging(["ROWS": tuning.tileRows]) { own, _ in own }
        let transform = try device.kernel("winograd_input", file: file, macros: macros, arguments: 10)
        let multiply = try device.kernel("winograd_multiply", file: file, macros: macros, arguments: 5)
        let output = try device.kernel("winograd_output", file: file, macros: macros, arguments: 11)
        let zeros = try device.zeros(max(channels, weights.outChannels))
        let u = try Tensor([36, panels, channels, tuning.panelWidth], .float32, isScratch: true, on: device)
        let v = try Tensor([36, strip, channels], .float32, isScratch: true, on: device)
        let m = try Tensor([36, strip, pitch], .float32, isScratch: true, on: device)

        // What follows takes no memory, and large pictures have many strips.
        if device.queue.isDryRun { return }
        try device.kernel("winograd_weights", file: file, macros: macros, arguments: 2).enqueue(
            [.buffer(weights.weights), .buffer(u.buffer)],
            global: [tuning.panelWidth / tuning.vectorWidth, channels, panels],
            local: [1, 1, 1]
        )
        for first in stride(from: 0, to: tiles, by: strip) {
            let count = min(strip, tiles - first)
            try transform.enqueue(
                [
                    .buffer(buffer), .buffer(zeros), .buffer(v.buffer), .int(shape[1]), .int(shape[2]), .int(channels),
                    .int(walked.height), .int(walked.width), .int(first), .int(count),
                ],
                global: [count],
                local: [1]
            )
            try multiply.enqueue(
                [.buffer(v.buffer), .buffer(u.buffer), .buffer(m.buffer), .int(channels), .int(count)],
                global: [panels, 36],
                local: [1, 1]
            )
            try output.enqueue(
                [
                    .buffer(m.buffer), .buffer(weights.bias), .buffer(channelBias?.buffer ?? zeros),
                    .buffer(residual?.buffer ?? zeros), .buffer(y.buffer), .int(y.shape[1]), .int(y.shape[2]),
                    .int(weights.outChannels), .int(pitch), .int(first), .int(count),
                ],
                global: [count],
                local: [1]
            )
        }
    }
}
