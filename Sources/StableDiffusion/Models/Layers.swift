// The layers models are made of: each reads its weights by the checkpoint's names and is one operator call.

internal import TensorOps

extension WeightLoader {
    /// Gives several tensors as they are stored to `body`, in the order of the keys.
    ///
    /// - Parameter tensors: Keys and shapes; the first extent of a shape is the number of output channels.
    func withSources<Result>(
        _ tensors: [(key: String, shape: [Int])],
        _ collected: [WeightSource] = [],
        body: ([WeightSource]) throws -> Result
    ) throws -> Result {
        guard collected.count < tensors.count else { return try body(collected) }
        let (key, shape) = tensors[collected.count]
        return try withTensor(key, shape) { bytes, type in
            guard let elementType = ElementType(type) else {
                throw WeightsError.unsupportedType(name: name(key), type: type.rawValue, file: checkpoint.source)
            }
            let source = WeightSource(bytes: bytes, type: elementType, outChannels: shape[0])
            return try withSources(tensors, collected + [source], body: body)
        }
    }
}

extension ElementType {
    /// The device's name of a storage type of checkpoints; nil for those no kernel reads.
    init?(_ type: WeightType) {
        switch type {
        case .float32: self = .float32
        case .float16: self = .float16
        case .bfloat16: self = .bfloat16
        case .float64, .int64: return nil
        }
    }
}

/// A 2-D convolution with bias, padded by half its kernel (diffusers: `nn.Conv2d`).
struct Conv2d {
    private let weights: ConvolutionWeights
    private let adaptable: AdaptableLayer?

    /// Reads `weight` `[outChannels, inChannels, kernelSize, kernelSize]` and `bias`.
    init(
        _ loader: WeightLoader,
        _ inChannels: Int,
        _ outChannels: Int,
        kernelSize: Int = 3,
        on device: TensorDevice
    ) throws {
        let bias = try loader.floats("bias", [outChannels])
        weights = try loader.withSources([("weight", [outChannels, inChannels, kernelSize, kernelSize])]) {
            try ConvolutionWeights($0, bias: bias, inChannels: inChannels, kernelSize: kernelSize, on: device)
        }
        adaptable = loader.adaptable(names: [""], weights, outChannels: outChannels)
    }

    /// `[N, H, W, inChannels]` to `[N, H', W', outChannels]`; see `Tensor.convolution`.
    func callAsFunction(
        _ x: Tensor,
        stride: Int = 1,
        padding: ConvolutionPadding = .around,
        upsampledTo size: (height: Int, width: Int)? = nil,
        channelBias: Tensor? = nil,
        residual: Tensor? = nil
    ) throws -> Tensor {
        var residual = residual
        if let adapter = adaptable?.adapter {
            residual = try x.convolution(adapter.down, stride: stride, padding: padding, upsampledTo: size)
                .convolution(adapter.up, residual: residual)
        }
        return try x.convolution(
            weights,
            stride: stride,
            padding: padding,
            upsampledTo: size,
            channelBias: channelBias,
            residual: residual
        )
    }
}

/// One linear layer, or several on the same input whose outputs stand side by side (diffusers: `nn.Linear`).
struct Linear {
    private let weights: ConvolutionWeights
    private let adaptable: AdaptableLayer?

    /// Reads `weight` `[outChannels, inChannels]`, and `bias` unless `hasBias` is false.
    init(
        _ loader: WeightLoader,
        _ inChannels: Int,
        _ outChannels: Int,
        hasBias: Bool = true,
        isGEGLU: Bool = false,
        on device: TensorDevice
    ) throws {
        try self.init(
            loader,
            names: [""],
            inChannels,
            outChannels,
            hasBias: hasBias,
            isGEGLU: isGEGLU,
            on: device
        )
    }

    /// Reads the layers `names` below the loader, each of `outChannels` outputs; an empty name is the loader itself.
    init(
        _ loader: WeightLoader,
        names: [String],
        _ inChannels: Int,
        _ outChannels: Int,
        hasBias: Bool = true,
        isGEGLU: Bool = false,
        on device: TensorDevice
    ) throws {
        let prefixes = names.map { $0.isEmpty ? "" : $0 + "." }
        let bias =
            hasBias ? try prefixes.flatMap { try loader.floats($0 + "bias", [outChannels]) } : nil
        weights = try loader.withSources(prefixes.map { ($0 + "weight", [outChannels, inChannels]) }) {
            try ConvolutionWeights(
                $0,
                bias: bias,
                inChannels: inChannels,
                isGEGLU: isGEGLU,
                isLinear: true,
                on: device
            )
        }
        adaptable = loader.adaptable(names: names, weights, outChannels: outChannels)
    }

    /// `[..., inChannels]` to `[..., outputs]`; see `Tensor.linear`.
    ///
    /// - Parameter isOperand: Whether only matrix products or attention read the result.
    func callAsFunction(
        _ x: Tensor,
        function: ActivationFunction = .none,
        residual: Tensor? = nil,
        isOperand: Bool = false
    ) throws -> Tensor {
        let type = isOperand ? x.device.operandType : x.device.activationType
        guard let adapter = adaptable?.adapter else {
            return try x.linear(weights, function: function, residual: residual, as: type)
        }
        let inner = try x.linear(adapter.down, as: x.device.operandType)
        // What is fused into the product comes after the sum of both: it is done by a pass of its own.
        if weights.isGEGLU {
            precondition(function == .none && residual == nil, "a GEGLU with more behind it")
            return try x.linear(weights.ungated, residual: inner.linear(adapter.up)).gated(weights, as: type)
        }
        if function != .none {
            let sum = try x.linear(weights).sum(with: inner.linear(adapter.up), function: function)
            return try residual.map { try sum.sum(with: $0) } ?? sum
        }
        return try x.linear(weights, residual: inner.linear(adapter.up, residual: residual), as: type)
    }
}

/// Group normalisation with scale and shift, optionally followed by SiLU (diffusers: `nn.GroupNorm`, `nn.SiLU`).
struct GroupNorm {
    private let weights: NormWeights
    private let groups: Int
    private let epsilon: Float

    /// Reads `weight` and `bias` of `channels` elements.
    init(_ loader: WeightLoader, _ channels: Int, groups: Int, epsilon: Double, on device: TensorDevice) throws {
        weights = try NormWeights(
            gamma: loader.floats("weight", [channels]),
            beta: loader.floats("bias", [channels]),
            on: device
        )
        self.groups = groups
        self.epsilon = Float(epsilon)
    }

    /// `[N, ..., channels]` to the same shape.
    func callAsFunction(_ x: Tensor, function: ActivationFunction = .none) throws -> Tensor {
        try x.groupNorm(weights, groups: groups, epsilon: epsilon, function: function)
    }

    /// The same of a picture in bands, for their windows.
    func normalization(of x: RowBands, function: ActivationFunction = .none) throws -> RowBands.Normalization {
        try x.normalization(weights, groups: groups, epsilon: epsilon, function: function)
    }
}

/// Layer normalisation with scale and shift (diffusers: `nn.LayerNorm`).
struct LayerNorm {
    private let weights: NormWeights
    private let epsilon: Float

    /// Reads `weight` and `bias` of `channels` elements.
    init(_ loader: WeightLoader, _ channels: Int, epsilon: Double = 1e-5, on device: TensorDevice) throws {
        weights = try NormWeights(
            gamma: loader.floats("weight", [channels]),
            beta: loader.floats("bias", [channels]),
            on: device
        )
        self.epsilon = Float(epsilon)
    }

    /// `[..., channels]` to the same shape.
    func callAsFunction(_ x: Tensor) throws -> Tensor {
        try x.layerNorm(weights, epsilon: epsilon)
    }
}
