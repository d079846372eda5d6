// What every operator computes, as plain loops in double precision, written from the formulas and not from the kernels.
// Big results are computed at chosen positions only.

internal import Foundation
package import TensorOps

/// The function f of an operator's output.
///
/// The formulas are those of torch.nn.functional.
package func referenceActivation(_ function: ActivationFunction, _ x: Double) -> Double {
    switch function {
    case .none: x
    case .silu: x / (1 + exp(-x))
    case .gelu: 0.5 * x * erfc(-x / 2.0.squareRoot())
    case .quickGELU: x / (1 + exp(-1.702 * x))
    }
}

/// A convolution or linear layer with everything that may be fused into it; see `Tensor.convolution`.
package struct ReferenceConvolution {
    /// The input, `[N, H, W, C]`.
    package var x: HostTensor
    /// The kernel, `[O, C, k, k]`; with GEGLU the first half of O are values, the second their gates.
    package var weight: HostTensor
    /// One value an output channel, `[O]`.
    package var bias: [Float]?
    /// 1 or 2.
    package var stride = 1
    /// Where the zeros stand.
    package var padding = ConvolutionPadding.around
    /// Height and width the input is first enlarged to.
    package var upsampledTo: (height: Int, width: Int)?
    /// One value a picture and output channel, `[N, O]`.
    package var channelBias: HostTensor?
    /// Applied to the sum.
    package var function = ActivationFunction.none
    /// The shape of the result.
    package var residual: HostTensor?
    /// Whether values are multiplied with GELU of their gates.
    package var isGEGLU = false

    /// A plain convolution; everything else is set afterwards.
    package init(_ x: HostTensor, weight: HostTensor, bias: [Float]? = nil) {
        precondition(x.shape.count == 4 && weight.shape.count == 4 && x.channels == weight.shape[1])
        self.x = x
        self.weight = weight
        self.bias = bias
    }

    /// The shape of the result, `[N, H', W', O]`.
    package var shape: [Int] {
        let height = upsampledTo?.height ?? x.shape[1]
        let width = upsampledTo?.width ?? x.shape[2]
        let rounding = padding == .around ? stride - 1 : 0
        return [
            x.shape[0], (height + rounding) / stride, (width + rounding) / stride,
            weight.shape[0] / (isGEGLU ? 2 : 1),
        ]
    }

    /// The results at positions of the flattened output.
    package func values(at positions: [Int]) -> [Double] {
        positions.map { position in
            let channels = shape[3]
            let o = position % channels
            let pixel = position / channels
            let (ox, oy) = (pixel % shape[2], pixel / shape[2] % shape[1])
            let n = pixel / shape[2] / shape[1]
            var value = sum(n, oy, ox, o)
            if isGEGLU { value *= referenceActivation(.gelu, sum(n, oy, ox, o + channels)) }
            if let channelBias { value += Double(channelBias.values[n * channels + o]) }
            value = referenceActivation(function, value)
            if let residual { value += Double(residual.values[position]) }
            return value
        }
    }

    /// The convolution proper and its bias.
    private func sum(_ n: Int, _ oy: Int, _ ox: Int, _ row: Int) -> Double {
        let (height, width, channels) = (x.shape[1], x.shape[2], x.shape[3])
        let walked = upsampledTo ?? (height, width)
        let size = weight.shape[2]
        var sum = bias.map { Double($0[row]) } ?? 0
        for ky in 0..<size {
            for kx in 0..<size {
                let before = padding == .around ? size / 2 : 0
                let v = oy * stride + ky - before
                let u = ox * stride + kx - before
                guard v >= 0, v < walked.height, u >= 0, u < walked.width else { continue }
                let source = ((n * height + v * height / walked.height) * width + u * width / walked.width) * channels
                for c in 0..<channels {
                    let w = weight.values[((row * channels + c) * size + ky) * size + kx]
                    sum += Double(x.values[source + c]) * Double(w)
                }
            }
        }
        return sum
    }
}

/// softmax(q kᵀ / √headSize) v for one query of one head.
///
/// - Parameters:
///   - queries: `[B, T, ...]`, of which the head's columns start at `queryColumn`; likewise keys and values, `[B, S, ...]`.
/// - Returns: `[headSize]`
package func referenceAttention(
    queries: HostTensor,
    keys: HostTensor,
    values: HostTensor,
    columns: (query: Int, key: Int, value: Int),
    headSize: Int,
    batch: Int,
    token: Int,
    isCausal: Bool
) -> [Double] {
    let keyCount = isCausal ? min(keys.shape[1], token + 1) : keys.shape[1]
    let query = (batch * queries.shape[1] + token) * queries.channels + columns.query
    let scores = (0..<keyCount).map { s in
        let key = (batch * keys.shape[1] + s) * keys.channels + columns.key
        var dot = 0.0
        for d in 0..<headSize { dot += Double(queries.values[query + d]) * Double(keys.values[key + d]) }
        return dot / Double(headSize).squareRoot()
    }
    let maximum = scores.max() ?? 0
    let weights = scores.map { exp($0 - maximum) }
    let total = weights.reduce(0, +)
    var result = [Double](repeating: 0, count: headSize)
    for s in 0..<keyCount {
        let value = (batch * values.shape[1] + s) * values.channels + columns.value
        for d in 0..<headSize { result[d] += weights[s] / total * Double(values.values[value + d]) }
    }
    return result
}

/// Group normalisation of `[N, ..., C]` followed by a function.
package func referenceGroupNorm(
    _ x: HostTensor,
    gamma: [Float],
    beta: [Float],
    groups: Int,
    epsilon: Double,
    function: ActivationFunction = .none
) -> [Double] {
    let channels = x.channels
    let batch = x.shape[0]
    let pixels = x.count / batch / channels
    let width = channels / groups
    var result = [Double](repeating: 0, count: x.count)
    for n in 0..<batch {
        for group in 0..<groups {
            let first = n * pixels * channels + group * width
            var sum = 0.0
            for s in 0..<pixels { for c in 0..<width { sum += Double(x.values[first + s * channels + c]) } }
            let mean = sum / Double(pixels * width)
            var squares = 0.0
            for s in 0..<pixels {
                for c in 0..<width {
                    let difference = Double(x.values[first + s * channels + c]) - mean
                    squares += difference * difference
                }
            }
            let scale = 1 / (squares / Double(pixels * width) + epsilon).squareRoot()
            for s in 0..<pixels {
                for c in 0..<width {
                    let at = first + s * channels + c
                    let normalized = (Double(x.values[at]) - mean) * scale
                    let channel = group * width + c
                    result[at] = referenceActivation(
                        function,
                        normalized * Double(gamma[channel]) + Double(beta[channel])
                    )
                }
            }
        }
    }
    return result
}

/// Layer normalisation over the innermost extent.
package func referenceLayerNorm(_ x: HostTensor, gamma: [Float], beta: [Float], epsilon: Double) -> [Double] {
    let channels = x.channels
    return (0..<x.count / channels).flatMap { row in
        let values = x.values[row * channels..<(row + 1) * channels].map { Double($0) }
        let mean = values.reduce(0, +) / Double(channels)
        let variance = values.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(channels)
        let scale = 1 / (variance + epsilon).squareRoot()
        return values.enumerated().map { ($1 - mean) * scale * Double(gamma[$0]) + Double(beta[$0]) }
    }
}

/// Token plus position embeddings: `table` is `[vocabulary, C]`, `positions` `[T, C]`.
package func referenceEmbedding(_ ids: [[Int32]], table: HostTensor, positions: HostTensor) -> [Double] {
    let channels = table.channels
    return ids.flatMap { row in
        row.enumerated().flatMap { position, id in
            (0..<channels).map {
                Double(table.values[Int(id) * channels + $0]) + Double(positions.values[position * channels + $0])
            }
        }
    }
}

/// u + scale (c - u) of a batch with the unconditional half first.
package func referenceGuidance(_ output: [Float], scale: Float) -> [Double] {
    let count = output.count / 2
    return (0..<count).map { i in
        Double(output[i]) + Double(scale) * (Double(output[count + i]) - Double(output[i]))
    }
}

/// The sum of lists of numbers, each times its factor.
package func referenceWeightedSum(_ terms: [(factor: Float, values: [Float])]) -> [Double] {
    terms[0].values.indices.map { i in terms.reduce(0) { $0 + Double($1.factor) * Double($1.values[i]) } }
}

/// round((x / 2 + 1 / 2) 255), clamped, halves to even, NaN as 0: diffusers' `denormalize` and `numpy_to_pil`, in 32 bits as there, because
/// that decides what is a half.
package func referenceRGB8(_ x: [Float]) -> [UInt8] {
    x.map { value in
        guard !value.isNaN else { return 0 }
        return UInt8((min(max(value / 2 + 0.5, 0), 1) * 255).rounded(.toNearestOrEven))
    }
}
