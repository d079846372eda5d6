// From the tests' host tensors to a device and back.

import TensorOps
import TestSupport

extension TensorDevice {
    /// The values on the device, in activation storage unless another is given; they are rounded there as `HostTensor.rounded(to:)`
    /// rounds them.
    @DeviceActor
    func upload(_ x: HostTensor, as type: ElementType? = nil) throws -> Tensor {
        try tensor(x.values, shape: x.shape, type: type)
    }

    /// Weights `[O, C, k, k]` as a checkpoint stores them in `type`, from one tensor or several whose output channels are concatenated.
    @DeviceActor
    func convolutionWeights(
        _ parts: [HostTensor],
        storedAs type: ElementType = .float32,
        bias: [Float]?,
        isGEGLU: Bool = false,
        isLinear: Bool = false
    ) throws -> ConvolutionWeights {
        let bytes = parts.map { storageBytes($0.values, type) }
        return try withBuffers(bytes) { buffers in
            let sources = zip(buffers, parts).map { WeightSource(bytes: $0, type: type, outChannels: $1.shape[0]) }
            return try ConvolutionWeights(
                sources,
                bias: bias,
                inChannels: parts[0].shape[1],
                kernelSize: parts[0].shape[2],
                isGEGLU: isGEGLU,
                isLinear: isLinear,
                on: self
            )
        }
    }
}

/// Pointers to several arrays at once, valid during `body`.
func withBuffers<Result>(
    _ arrays: [[UInt8]],
    _ collected: [UnsafeRawBufferPointer] = [],
    _ body: ([UnsafeRawBufferPointer]) throws -> Result
) rethrows -> Result {
    guard let first = arrays.first else { return try body(collected) }
    return try first.withUnsafeBytes { try withBuffers(Array(arrays.dropFirst()), collected + [$0], body) }
}

extension Array where Element == Float {
    /// The elements at positions.
    func at(_ positions: [Int]) -> [Float] { positions.map { self[$0] } }
}
