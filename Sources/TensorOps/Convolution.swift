// Convolutions and linear layers: Kernels/convolution.cl, or CLBlast with Kernels/elementwise.cl's epilogue for linear layers.

internal import OpenCLRuntime

/// The function applied to an output, by its number in `Kernels/common.clh`.
public enum ActivationFunction: Int, Sendable {
    /// y = x
    case none = 0
    /// y = x / (1 + exp(-x))
    case silu = 1
    /// y = x Φ(x), exact.
    case gelu = 2
    /// y = x / (1 + exp(-1.702 x))
    case quickGELU = 3
}

/// Where zeros stand around a picture, half of the kernel's extent less one in each direction.
public enum ConvolutionPadding: Sendable {
    /// On all sides.
    case around
    /// Twice as many below and to the right only, as the autoencoder's encoder has it.
    case after
}

extension Tensor {
    /// y = f(conv(x) + bias + channelBias) + residual, zero-padded.
    ///
    /// `[N, H, W, C]` to `[N, H', W', O]`, activation type, allocated.
    /// - Parameters:
    ///   - weights: Kernel, bias, channels; C must be the tensor's (traps).
    ///   - stride: 1 or 2; H' = ceil(H / stride), or floor(H / 2) where zeros stand after a picture, which takes a stride of 2 and H and W of at
    ///     least 2 (traps otherwise).
    ///   - padding: Where the zeros stand.
    ///   - size: Height and width the input is first enlarged to, nearest neighbour.
    ///   - function: f.
    ///   - channelBias: `[N, O]`, activation type, added before f.
    ///   - residual: The shape of the result, added after f.
    /// - Throws: `OpenCLError`, `KernelError`.
    public func convolution(
        _ weights: ConvolutionWeights,
        stride: Int = 1,
        padding: ConvolutionPadding = .around,
        upsampledTo size: (height: Int, width: Int)? = nil,
        function: ActivationFunction = .none,
        channelBias: Tensor? = nil,
        residual: Tensor? = nil
    ) throws -> Tensor {
        precondition(shape.count == 4, "convolution of \(shape)")
        let height = size?.height ?? shape[1]
        let width = size?.width ?? shape[2]
        precondition(padding == .around || (stride == 2 && min(height, width) >= 2), "zeros after \(shape)")
        let rounding = padding == .around ? stride - 1 : 0
        let y = try Tensor(
            [shape[0], (height + rounding) / stride, (width + rounding) / stride, weights.outChannels],
            on: device
        )
        try enqueueConvolution(
            weights,
            into: y,
            stride: stride,
            padding: padding == .around ? weights.kernelSize / 2 : 0,
            walked: (height, width),
            function: function,
            channelBias: channelBias,
            residual: residual
        )
        return y
    }

    /// y = f(x wᵀ + bias) + residual over the innermost extent.
    ///
    /// `[..., C]` to `[..., O]`, allocated.
    /// - Parameter type: Storage of the result, activation or operand type; nil is the activation type.
    /// - Throws: `OpenCLError`, `KernelError`.
    public func linear(
        _ weights: ConvolutionWeights,
        function: ActivationFunction = .none,
        residual: Tensor? = nil,
        as type: ElementType? = nil
    ) throws -> Tensor {
        precondition(weights.kernelSize == 1, "linear layer with a \(weights.kernelSize)x\(weights.kernelSize) kernel")
        let y = try Tensor(shape.dropLast() + [weights.outChannels], type, on: device)
        switch weights.form {
        case .rowMajor:
            try enqueueCLBlast(weights, into: y, function: function, residual: residual)
        case .packed, .blocked:
            try reshaped([1, 1, rows, channels]).enqueueConvolution(
                weights,
                into: y.reshaped([1, 1, rows, weights.outChannels]),
                stride: 1,
                padding: 0,
                walked: (1, rows),
                function: function,
                channelBias: nil,
                residual: residual
            )
        }
        return y
    }

    private func enqueueConvolution(
        _ weights: ConvolutionWeights,
        into y: Tensor,
        stride: Int,
        padding: Int,
        walked: (height: Int, width: Int),
        function: ActivationFunction,
        channelBias: Tensor?,
        residual: Tensor?
    ) throws {
        precondition(weights.form != .rowMajor, "convolution with weights for CLBlast")
        precondition(
            channels == weights.inChannels,
            "convolution of \(shape) with \(weights.inChannels) input channels"
        )
        precondition(residual.map { $0.count == y.count } ?? true, "residual \(residual?.shape ?? []) for \(y.shape)")
        precondition(
            channelBias.map { $0.count == shape[0] * weights.outChannels } ?? true,
            "channel bias \(channelBias?.shape ?? []) for \(y.shape)"
        )
        for added in [channelBias, residual].compactMap({ $0 }) {
            precondition(added.elementType == device.activationType, "\(added.elementType) added to a convolution")
        }
        let x = try converted(to: device.operandType)
        let tuning = device.tuning
        let outputRows = y.rows
        let panels = ((weights.isGEGLU ? 2 : 1) * weights.outChannels + tuning.panelWidth - 1) / tuning.panelWidth
        var macros = [
            "PANEL": tuning.panelWidth, "FUNCTION": function.rawValue,
            "HAS_CHANNEL_BIAS": channelBias == nil ? 0 : 1, "HAS_RESIDUAL": residual == nil ? 0 : 1,
            "UPSAMPLE": walked.height == shape[1] && walked.width == shape[2] ? 0 : 1,
            "PAIRED": weights.isPaired ? 1 : 0,
        ]
        if y.elementType != device.activationType { macros["OUTPUT"] = y.elementType.rawValue }
        if device.usesWinograd(weights, stride: stride, batch: shape[0], walked: walked) {
            return try x.enqueueWinograd(
                weights,
                into: y,
                walked: walked,
                macros: macros,
                channelBias: channelBias,
                residual: residual
            )
        }
        macros["KERNEL"] = weights.kernelSize
        macros["GEGLU"] = weights.isGEGLU ? 1 : 0
        if weights.form == .blocked {
            return try x.enqueueOnTensorCores(
                weights,
                into: y,
                stride: stride,
                padding: padding,
                walked: walked,
                function: function,
                channelBias: channelBias,
                residual: residual
            )
        }
        let global: [Int]
        let local: [Int]
        var ownArguments: [KernelArgument] = []
        switch tuning.family {
        case .plain:
            // Left to PoCL, the size varies with the shape, and each is compiled anew.
            global = [weights.outChannels, outputRows]
            local = [tuning.elementwiseWorkGroup, 1]
        case .cpu:
            macros["ROWS"] = tuning.tileRows
            let tiles = (outputRows + tuning.tileRows - 1) / tuning.tileRows
            let block = tuning.convolutionBlock(tiles: tiles * panels)
            global = [panels, (tiles + block - 1) / block]
            local = [1, 1]
            ownArguments = [.int(block)]
        case .gpu, .nvidia:
            global = [16 * panels * ((outputRows + 63) / 64), 16]
            local = [16, 16]
        }
        let kernel = try device.kernel(
            "convolution_\(tuning.family == .nvidia ? "gpu" : tuning.family.rawValue)",
            file: "convolution.cl",
            macros: macros,
            arguments: 18 + ownArguments.count
        )
        let zeros = try device.zeros(channels)
        try kernel.enqueue(
            [
                .buffer(x.buffer), .buffer(weights.weights), .buffer(weights.bias),
                .buffer(channelBias?.buffer ?? zeros), .buffer(residual?.buffer ?? zeros), .buffer(zeros),
                .buffer(y.buffer),
                .int(shape[0]), .int(shape[1]), .int(shape[2]), .int(channels), .int(y.shape[1]), .int(y.shape[2]),
                .int(weights.outChannels), .int(walked.height), .int(walked.width), .int(stride),
                .int(padding),
            ] + ownArguments,
            global: global,
            local: local
        )
    }

    private func enqueueCLBlast(
        _ weights: ConvolutionWeights,
        into y: Tensor,
        function: ActivationFunction,
        residual: Tensor?
    ) throws {
        precondition(
            channels == weights.inChannels,
            "linear layer of \(shape) with \(weights.inChannels) input channels"
        )
        let columns = weights.outChannels * (weights.isGEGLU ? 2 : 1)
        let x = try converted(to: .float32)
        let product = try Tensor([rows, columns], .float32, on: device)
        try device.queue.sgemm(x: x.buffer, w: weights.weights, y: product.buffer, m: rows, n: columns, k: channels)
        var macros = [
            "FUNCTION": function.rawValue, "GEGLU": weights.isGEGLU ? 1 : 0, "HAS_RESIDUAL": residual == nil ? 0 : 1,
        ]
        if y.elementType != device.activationType { macros["OUTPUT"] = y.elementType.rawValue }
        let workGroup = device.tuning.elementwiseWorkGroup
        let kernel = try device.kernel("matmul_epilogue", file: "elementwise.cl", macros: macros, arguments: 5)
        try kernel.enqueue(
            [
                .buffer(product.buffer), .buffer(weights.bias), .buffer(residual?.buffer ?? product.buffer),
                .buffer(y.buffer), .int(weights.outChannels),
            ],
            global: [rows * ((weights.outChannels + workGroup - 1) / workGroup) * workGroup],
            local: [workGroup]
        )
    }
}
