// The NVIDIA family: Kernels/convolution_mma.cl and Kernels/attention_mma.cl, and the self-test without which no device runs them.

internal import Logging
internal import OpenCLRuntime

extension Tensor {
    /// Enqueues y = f(conv(x) + bias + channelBias) + residual; see `Tensor.convolution`.
    ///
    /// - Parameters:
    ///   - weights: In blocked form.
    ///   - padding: Zeros above and to the left of the picture.
    ///   - walked: Height and width of the picture the kernel walks over.
    func enqueueOnTensorCores(
        _ weights: ConvolutionWeights,
        into y: Tensor,
        stride: Int,
        padding: Int,
        walked: (height: Int, width: Int),
        function: ActivationFunction,
        channelBias: Tensor?,
        residual: Tensor?
    ) throws {
        for tensor in [self, y] {
            precondition(tensor.elementType == .float16, "\(tensor.elementType) on tensor cores")
        }
        let outChannels = weights.outChannels
        let blockWidth = ConvolutionWeights.blockWidth
        let panels = ((weights.isGEGLU ? 2 : 1) * outChannels + blockWidth - 1) / blockWidth
        let steps = weights.kernelSize * weights.kernelSize * ((channels + 31) / 32)

        // What is fused is the business of whichever kernel finishes.
        let fused = [
            "FUNCTION": function.rawValue, "HAS_CHANNEL_BIAS": channelBias == nil ? 0 : 1,
            "HAS_RESIDUAL": residual == nil ? 0 : 1, "WHOLE": outChannels % 4 == 0 ? 1 : 0,
        ]
        let bias = KernelArgument.buffer(weights.bias)
        // Arguments that a variant does not read are any buffer.
        let added: [KernelArgument] = [
            .buffer(channelBias?.buffer ?? weights.bias), .buffer(residual?.buffer ?? weights.bias), .buffer(y.buffer),
        ]

        if weights.kernelSize == 1, !weights.isGEGLU, y.rows == rows, rows <= device.tuning.fewRows {
            let rowsOfGroup = 4
            let few = try device.kernelOnTensorCores(
                "linear_few_mma",
                file: "convolution_mma.cl",
                fused.merging(["KERNEL": 1, "FEW": rowsOfGroup]) { $1 },
                arguments: 10
            )
            try few.enqueue(
                [.buffer(buffer), .buffer(weights.weights), bias] + added + [
                    .int(rows), .int(rows / shape[0]), .int(channels), .int(outChannels),
                ],
                global: [128 * panels, (rows + rowsOfGroup - 1) / rowsOfGroup],
                local: [128, 1]
            )
            return
        }
        let tile = device.tuning.matrixTile(rows: y.rows, columns: panels * blockWidth, steps: steps)
        let stepsPerSplit = (steps + tile.splits - 1) / tile.splits
        // Rounding up may leave the last one nothing to do.
        let splits = (steps + stepsPerSplit - 1) / stepsPerSplit

        let items = 32 * tile.warps
        let isGEGLU = weights.isGEGLU ? 1 : 0
        var macros = splits == 1 ? fused : ["WHOLE": 1, "SPLIT": 1]
        macros["KERNEL"] = weights.kernelSize
        macros["GEGLU"] = isGEGLU
        macros["UPSAMPLE"] = walked.height == shape[1] && walked.width == shape[2] ? 0 : 1
        macros["TILE_M"] = tile.rows
        macros["TILE_N"] = tile.columns
        macros["WARP_M"] = tile.warpRows
        macros["WARP_N"] = tile.warpColumns
        let partial = splits == 1 ? nil : try Tensor([splits, y.rows, panels * blockWidth], .float32, on: device)

        let kernel = try device.kernelOnTensorCores(
            "convolution_mma",
            file: "convolution_mma.cl",
            macros,
            arguments: 20
        )
        try kernel.enqueue(
            [.buffer(buffer), .buffer(weights.weights), bias] + added + [
                .buffer(partial?.buffer ?? weights.bias),
                .int(shape[0]), .int(shape[1]), .int(shape[2]), .int(channels), .int(y.shape[1]), .int(y.shape[2]),
                .int(outChannels), .int(walked.height), .int(walked.width), .int(stride), .int(padding),
                .int(panels), .int(stepsPerSplit),
            ],
            global: [
                items * ((panels * blockWidth + tile.columns - 1) / tile.columns)
                    * ((y.rows + tile.rows - 1) / tile.rows),
                splits,
            ],
            local: [items, 1]
        )
        guard let partial else { return }
        let finish = try device.kernelOnTensorCores(
            "convolution_mma_finish",
            file: "convolution_mma.cl",
            fused.merging(["KERNEL": 1, "GEGLU": isGEGLU]) { $1 },
            arguments: 10
        )
        let owned = weights.isGEGLU ? 2 : 4
        try finish.enqueue(
            [.buffer(partial.buffer), bias] + added + [
                .int(splits), .int(y.rows), .int(y.rows / shape[0]), .int(outChannels), .int(panels),
            ],
            global: [(outChannels + owned - 1) / owned, y.rows],
            local: [32, 4]
        )
    }
}

extension TensorDevice {
    /// Enqueues `attention` if this is a device of the NVIDIA family and its kernels take the head size and the columns.
    ///
    /// - Returns: Whether it did.
    func enqueueAttentionOnTensorCores(
        _ queries: Columns,
        _ keys: Columns,
        _ values: Columns,
        headSize: Int,
        sizes: [KernelArgument],
        into y: Tensor
    ) throws -> Bool {
        // Rows of every head have to begin at a whole piece of 8 elements.
        guard tuning.family == .nvidia, let queryTiles = tuning.attentionQueryTiles(headSize: headSize),
            [queries, keys, values].allSatisfy({ $0.offset % 8 == 0 && $0.tensor.channels % 8 == 0 })
        else { return false }
        let isWide = headSize % 256 == 0
        let kernel = try kernelOnTensorCores(
            isWide ? "attention_mma_wide" : "attention_mma",
            file: "attention_mma.cl",
            ["HEAD_SIZE": headSize, "M_TILES": queryTiles],
            arguments: 16
        )
        let (batch, tokens) = (y.shape[0], y.shape[1])
        let queriesPerGroup = isWide ? 16 : 64 * queryTiles
        try kernel.enqueue(
            queries.arguments + keys.arguments + values.arguments + [.buffer(y.buffer)] + sizes,
            global: [128 * ((tokens + queriesPerGroup - 1) / queriesPerGroup), y.channels / headSize, batch],
            local: [128, 1, 1]
        )
        return true
    }

    fileprivate func kernelOnTensorCores(
        _ name: String,
        file: String,
        _ macros: [String: Int],
        arguments: Int
    ) throws -> Kernel {
        try kernel(name, file: file, macros: macros.merging([tuning.tensorCores.macro: 1]) { $1 }, arguments: arguments)
    }
}

/// Small cases computed on tensor cores and by the plain kernels, on the device that is going to be used.
///
/// NVIDIA's compiler is not ours and the kernels hold assembly, so they are believed only after this. The programs it builds are ones that models need.
struct TensorCoreTest {
    /// The same queue in different tunings.
    let device: (KernelTuning) -> TensorDevice
    let tuning: KernelTuning

    /// Runs all cases.
    ///
    /// - Returns: What is wrong; nil if nothing is.
    /// - Throws: `KernelError` where the device's compiler refuses a kernel, `OpenCLError`.
    func firstDisagreement() throws -> String? {
        var plainTuning = tuning
        plainTuning.family = .plain
        plainTuning.panelWidth = 8
        let plain = device(plainTuning)
        for tile in MatrixTile.all {
            if let wrong = try disagreement({ try convolution(on: $0) }, device(fixed(tile)), plain) {
                return "convolution, tile \(tile.rows)x\(tile.columns): \(wrong)"
            }
        }
        // What does not depend on the tile.
        if let wrong = try disagreement({ try few(on: $0) }, device(fixed(MatrixTile.all[2])), plain) {
            return "convolution of an enlarged picture to 3 channels: \(wrong)"
        }
        if let wrong = try disagreement({ try strided(on: $0) }, device(fixed(MatrixTile.all[2])), plain) {
            return "convolution with a stride of 2: \(wrong)"
        }
        if let wrong = try disagreement({ try linear(on: $0) }, device(fixed(MatrixTile.all[2])), plain) {
            return "linear layer: \(wrong)"
        }
        if let wrong = try disagreement({ try fewRows(on: $0) }, device(tuning), plain) {
            return "linear layer of few rows: \(wrong)"
        }
        if let wrong = try disagreement({ try convolution(on: $0) }, device(fixed(MatrixTile.all[2], splits: 2)), plain)
        {
            return "convolution in parts: \(wrong)"
        }
        if let wrong = try disagreement({ try geglu(on: $0) }, device(fixed(MatrixTile.all[2])), plain) {
            return "linear layer with GEGLU: \(wrong)"
        }
        for headSize in [40, 64, 80, 160, 512] {
            if let wrong = try disagreement({ try attentionOfHeads(headSize, on: $0) }, device(tuning), plain) {
                return "attention, heads of \(headSize): \(wrong)"
            }
        }
        return nil
    }

    /// The tuning with one tile for all convolutions.
    private func fixed(_ tile: MatrixTile, splits: Int = 1) -> KernelTuning {
        var fixed = tuning
        fixed.matrixTile = tile
        fixed.matrixTile?.splits = splits
        return fixed
    }

    /// Sums of whole numbers, which are exact, so that what differs is wrong; more pixels and channels than a tile has.
    private func convolution(on device: TensorDevice) throws -> Tensor {
        let (channels, outChannels) = (40, 136)
        let weights = try weights(outChannels: outChannels, channels: channels, kernelSize: 3, on: device)
        let x = try device.tensor(numbers(2 * 9 * 11 * channels, 1), shape: [2, 9, 11, channels])
        let residual = try device.tensor(numbers(2 * 9 * 11 * outChannels, 2), shape: [2, 9, 11, outChannels])
        return try x.convolution(weights, residual: residual)
    }

    /// Fewer output channels than are stored at once.
    private func few(on device: TensorDevice) throws -> Tensor {
        let weights = try weights(outChannels: 3, channels: 24, kernelSize: 3, on: device)
        return try device.tensor(numbers(5 * 7 * 24, 7), shape: [1, 5, 7, 24])
            .convolution(weights, upsampledTo: (10, 13))
    }

    private func strided(on device: TensorDevice) throws -> Tensor {
        let weights = try weights(outChannels: 72, channels: 32, kernelSize: 3, on: device)
        let bias = try device.tensor(numbers(2 * 72, 8), shape: [2, 72])
        return try device.tensor(numbers(2 * 9 * 11 * 32, 9), shape: [2, 9, 11, 32])
            .convolution(weights, stride: 2, function: .silu, channelBias: bias)
    }

    private func linear(on device: TensorDevice) throws -> Tensor {
        let weights = try weights(outChannels: 72, channels: 64, kernelSize: 1, on: device)
        let residual = try device.tensor(numbers(131 * 72, 10), shape: [131, 72])
        return try device.tensor(numbers(131 * 64, 11), shape: [131, 64]).linear(weights, residual: residual)
    }

    private func fewRows(on device: TensorDevice) throws -> Tensor {
        let weights = try weights(outChannels: 72, channels: 168, kernelSize: 1, on: device)
        return try device.tensor(numbers(5 * 168, 12), shape: [5, 168]).linear(weights, function: .silu)
    }

    private func geglu(on device: TensorDevice) throws -> Tensor {
        let weights = try weights(outChannels: 2 * 72, channels: 64, kernelSize: 1, isGEGLU: true, on: device)
        return try device.tensor(numbers(131 * 64, 3).map { $0 / 16 }, shape: [131, 64]).linear(weights)
    }

    /// Two heads, more queries and keys than a block has, and not a whole number of blocks.
    private func attentionOfHeads(_ headSize: Int, on device: TensorDevice) throws -> Tensor {
        let (tokens, channels) = (141, 2 * headSize)
        let x = try device.tensor(
            numbers(tokens * 3 * channels, 4).map { $0 / 2 },
            shape: [1, tokens, 3 * channels],
            type: device.operandType
        )
        return try attention(
            queries: Columns(x),
            keys: Columns(x, offset: channels),
            values: Columns(x, offset: 2 * channels),
            heads: 2,
            headSize: headSize,
            isCausal: headSize == 64
        )
    }

    private func weights(
        outChannels: Int,
        channels: Int,
        kernelSize: Int,
        isGEGLU: Bool = false,
        on device: TensorDevice
    ) throws -> ConvolutionWeights {
        try numbers(outChannels * channels * kernelSize * kernelSize, 5).withUnsafeBytes {
            try ConvolutionWeights(
                [WeightSource(bytes: $0, type: .float32, outChannels: outChannels)],
                bias: numbers(outChannels, 6),
                inChannels: channels,
                kernelSize: kernelSize,
                isGEGLU: isGEGLU,
                on: device
            )
        }
    }

    /// Whole numbers from -2 to 2 without a pattern that a wrong index might keep (Knuth's multiplicative hashing).
    private func numbers(_ count: Int, _ seed: UInt32) -> [Float] {
        (0..<count).map { index in
            let hash = (UInt32(truncatingIfNeeded: index) &+ seed &* 7919) &* 2_654_435_761
            return Float((hash >> 16) % 5) - 2
        }
    }

    /// How two devices' results differ; probabilities rounded to half are worth a thousandth.
    private func disagreement(
        _ compute: (TensorDevice) throws -> Tensor,
        _ tested: TensorDevice,
        _ plain: TensorDevice
    ) throws -> String? {
        let found = try compute(tested).floats()
        let expected = try compute(plain).floats()
        let isWrong = { (index: Int) in
            !(abs(found[index] - expected[index]) <= 4e-3 * max(1, abs(expected[index])))
        }
        let wrong = found.indices.filter(isWrong)
        guard let first = wrong.first else { return nil }
        return """
            \(wrong.count) of \(found.count) elements differ from the plain kernel's; element \(first) is \(found[first]) \
            instead of \(expected[first])
            """
    }
}
