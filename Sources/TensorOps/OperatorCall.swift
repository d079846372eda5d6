// Calls of operators by their shapes alone: how much work each is, and how it is done on made-up operands.

/// What a tensor is stored as: as activations are, or as operands of matrix products.
public enum StorageRole: Sendable {
    /// The residual stream, and what is added to it.
    case activation
    /// What only matrix products and attention read.
    case operand
}

/// One call of an operator, without its numbers.
public enum OperatorCall: Hashable, Sendable {
    /// `Tensor.convolution` of `[batch, height, width, inChannels]`; the size is that of the picture the kernel walks over.
    case convolution(
        batch: Int,
        height: Int,
        width: Int,
        inChannels: Int,
        outChannels: Int,
        kernelSize: Int = 3,
        stride: Int = 1,
        isUpsampled: Bool = false,
        hasChannelBias: Bool = false,
        hasResidual: Bool = false,
        source: StorageRole = .activation
    )
    /// `Tensor.linear` of `[rows, inChannels]`; with GEGLU `outChannels` values are made of twice as many products.
    case linear(
        rows: Int,
        inChannels: Int,
        outChannels: Int,
        isGEGLU: Bool = false,
        function: ActivationFunction = .none,
        hasResidual: Bool = false,
        source: StorageRole = .operand,
        result: StorageRole = .activation
    )
    /// `attention`; queries, keys and values of self-attention stand side by side in one tensor, the latter two otherwise.
    case attention(batch: Int, queries: Int, keys: Int, heads: Int, headSize: Int, isSelf: Bool, isCausal: Bool = false)
    /// `Tensor.groupNorm` of `[batch, pixels, channels]`.
    case groupNorm(batch: Int, pixels: Int, channels: Int, groups: Int, function: ActivationFunction = .none)
    /// `Tensor.layerNorm` of `[rows, channels]`.
    case layerNorm(rows: Int, channels: Int)
    /// `Tensor.concatenated` of `[rows, channels]` and `[rows, otherChannels]`.
    case concatenation(rows: Int, channels: Int, otherChannels: Int)
    /// `Tensor.modelInput` of `[1, count]`.
    case modelInput(count: Int, copies: Int)
    /// `Tensor.guided` to `[1, count]`.
    case guidance(count: Int)
    /// `Tensor.weightedSum` of `terms` tensors `[1, count]`.
    case weightedSum(count: Int, terms: Int)
    /// `TensorDevice.embedding` of `[batch, tokens]` ids.
    case embedding(batch: Int, tokens: Int, channels: Int, vocabulary: Int)
    /// `Tensor.rgb8` of `[1, height, width, 3]`; the bytes are read back.
    case rgb8(height: Int, width: Int)
}

extension OperatorCall {
    /// The kind of operator, as reports name it.
    public var kind: String {
        switch self {
        case .convolution(_, _, _, _, _, let kernelSize, let stride, let isUpsampled, _, _, _):
            "conv \(kernelSize)x\(kernelSize)" + (stride == 1 ? "" : " stride \(stride)")
                + (isUpsampled ? " upsampled" : "")
        case .linear(_, _, _, let isGEGLU, _, _, _, _): isGEGLU ? "linear GEGLU" : "linear"
        case .attention(_, _, _, _, _, let isSelf, _): isSelf ? "self-attention" : "cross-attention"
        case .groupNorm: "group norm"
        case .layerNorm: "layer norm"
        case .concatenation: "concatenation"
        case .modelInput, .guidance, .weightedSum: "elementwise"
        case .embedding: "embedding"
        case .rgb8: "picture"
        }
    }

    /// The shapes, and what is fused, as reports show them.
    public var shape: String {
        switch self {
        case .convolution(
            let batch,
            let height,
            let width,
            let inChannels,
            let outChannels,
            _,
            _,
            _,
            let hasChannelBias,
            let hasResidual,
            _
        ):
            "\(batch)x\(height)x\(width), \(inChannels) -> \(outChannels)" + (hasChannelBias ? " + time" : "")
                + (hasResidual ? " + residual" : "")
        case .linear(let rows, let inChannels, let outChannels, _, let function, let hasResidual, _, _):
            "\(rows), \(inChannels) -> \(outChannels)" + (function == .none ? "" : " \(function)")
                + (hasResidual ? " + residual" : "")
        case .attention(let batch, let queries, let keys, let heads, let headSize, _, let isCausal):
            "\(batch)x\(heads) heads of \(headSize), \(queries) x \(keys)" + (isCausal ? " causal" : "")
        case .groupNorm(let batch, let pixels, let channels, _, let function):
            "\(batch)x\(pixels), \(channels)" + (function == .none ? "" : " \(function)")
        case .layerNorm(let rows, let channels): "\(rows), \(channels)"
        case .concatenation(let rows, let channels, let otherChannels): "\(rows), \(channels) + \(otherChannels)"
        case .modelInput(let count, let copies): "model input, \(copies)x\(count)"
        case .guidance(let count): "guidance, \(count)"
        case .weightedSum(let count, let terms): "sampler's update, \(terms)x\(count)"
        case .embedding(let batch, let tokens, let channels, _): "\(batch)x\(tokens), \(channels)"
        case .rgb8(let height, let width): "\(height)x\(width) RGB"
        }
    }

    /// The extents by name, for programs that measure the same elsewhere.
    public var extents: [String: Int] {
        switch self {
        case .convolution(
            let batch,
            let height,
            let width,
            let inChannels,
            let outChannels,
            let kernelSize,
            let stride,
            let isUpsampled,
            _,
            _,
            _
        ):
            [
                "batch": batch, "height": height, "width": width, "in_channels": inChannels,
                "out_channels": outChannels, "kernel_size": kernelSize, "stride": stride,
                "upsampled": isUpsampled ? 1 : 0,
            ]
        case .linear(let rows, let inChannels, let outChannels, let isGEGLU, _, _, _, _):
            ["rows": rows, "in_channels": inChannels, "out_channels": outChannels, "geglu": isGEGLU ? 1 : 0]
        case .attention(let batch, let queries, let keys, let heads, let headSize, _, let isCausal):
            [
                "batch": batch, "queries": queries, "keys": keys, "heads": heads, "head_size": headSize,
                "causal": isCausal ? 1 : 0,
            ]
        case .groupNorm(let batch, let pixels, let channels, let groups, let function):
            [
                "batch": batch, "pixels": pixels, "channels": channels, "groups": groups,
                "silu": function == .silu ? 1 : 0,
            ]
        case .layerNorm(let rows, let channels): ["rows": rows, "channels": channels]
        case .concatenation(let rows, let channels, let otherChannels):
            ["rows": rows, "channels": channels, "other_channels": otherChannels]
        case .modelInput(let count, let copies): ["count": count, "copies": copies]
        case .guidance(let count): ["count": count]
        case .weightedSum(let count, let terms): ["count": count, "terms": terms]
        case .embedding(let batch, let tokens, let channels, let vocabulary):
            ["batch": batch, "tokens": tokens, "channels": channels, "vocabulary": vocabulary]
        case .rgb8(let height, let width): ["height": height, "width": width]
        }
    }

    /// Elements of the weights that the call multiplies by; 0 where it has none.
    public var weightCount: Int {
        switch self {
        case .convolution(_, _, _, let inChannels, let outChannels, let kernelSize, _, _, _, _, _):
            inChannels * outChannels * kernelSize * kernelSize
        case .linear(_, let inChannels, let outChannels, let isGEGLU, _, _, _, _):
            inChannels * outChannels * (isGEGLU ? 2 : 1)
        default: 0
        }
    }

    /// Operations of matrix products, a multiply-add counted as two, by the definition of the operator: a kernel that does with fewer (Winograd)
    /// is credited with all of them.
    public var operations: Double {
        switch self {
        case .convolution(let batch, let height, let width, _, _, _, let stride, _, _, _, _):
            let pixels = batch * OperatorCall.outputPixels(height, width, stride)
            return 2 * Double(pixels) * Double(weightCount)
        case .linear(let rows, _, _, _, _, _, _, _):
            return 2 * Double(rows) * Double(weightCount)
        case .attention(let batch, let queries, let keys, let heads, let headSize, _, let isCausal):
            // Under a causal mask token t sees t + 1 keys; scores and values are a product each.
            let pairs = isCausal ? queries * (queries + 1) / 2 : queries * keys
            return 4 * Double(batch * heads * headSize) * Double(pairs)
        default:
            return 0
        }
    }

    /// Pixels of a convolution's result.
    static func outputPixels(_ height: Int, _ width: Int, _ stride: Int) -> Int {
        ((height - 1) / stride + 1) * ((width - 1) / stride + 1)
    }

    /// Bytes that have to be read and written at least, every tensor once, on a device with these storage types.
    public func bytes(on device: TensorDevice) -> Double {
        let activation = device.activationType.byteCount
        let operand = device.operandType.byteCount
        func size(_ role: StorageRole) -> Int { role == .operand ? operand : activation }
        let weights = weightCount * device.weightType.byteCount
        let bytes: Int
        switch self {
        case .convolution(
            let batch,
            let height,
            let width,
            let inChannels,
            let outChannels,
            _,
            let stride,
            let isUpsampled,
            _,
            let hasResidual,
            let source
        ):
            let pixels = isUpsampled ? (height + 1) / 2 * ((width + 1) / 2) : height * width
            let read = batch * pixels * inChannels * size(source)
            let written = batch * OperatorCall.outputPixels(height, width, stride) * outChannels * activation
            bytes = read + (hasResidual ? 2 : 1) * written + weights
        case .linear(let rows, let inChannels, let outChannels, _, _, let hasResidual, let source, let result):
            let read = inChannels * size(source) + (hasResidual ? outChannels * activation : 0)
            bytes = rows * (read + outChannels * size(result)) + weights
        case .attention(let batch, let queries, let keys, let heads, let headSize, _, _):
            bytes = 2 * batch * heads * headSize * (queries + keys) * operand
        case .groupNorm(let batch, let pixels, let channels, _, _):
            bytes = batch * pixels * channels * (activation + operand)
        case .layerNorm(let rows, let channels): bytes = rows * channels * (activation + operand)
        case .concatenation(let rows, let channels, let otherChannels):
            bytes = 2 * rows * (channels + otherChannels) * activation
        case .modelInput(let count, let copies): bytes = count * (4 + copies * activation)
        case .guidance(let count): bytes = count * (4 + 2 * activation)
        case .weightedSum(let count, let terms): bytes = count * 4 * (terms + 1)
        case .embedding(let batch, let tokens, let channels, _):
            let perElement = device.weightType.byteCount + 4 + activation
            bytes = batch * tokens * channels * perElement
        case .rgb8(let height, let width): bytes = height * width * 3 * (activation + 2)
        }
        return Double(bytes)
    }
}
