// From the decoder's output to the bytes of a picture: Kernels/image_conversion.cl.

internal import OpenCLRuntime

extension Tensor {
    /// Waits for the device and returns `[1, H, W, 3]` in [-1, 1] as rows of RGB triples, 8 bits a channel.
    ///
    /// - Throws: `OpenCLError`, `KernelError`.
    public func rgb8() throws -> [UInt8] {
        precondition(shape.count == 4 && channels == 3, "picture of shape \(shape)")
        precondition(elementType == device.activationType, "picture of \(elementType)")
        let bytes = try device.pool.take(count)
        defer { device.pool.give(bytes) }
        try device.kernel("image_to_rgb8", file: "image_conversion.cl", arguments: 3).enqueue(
            [.buffer(buffer), .buffer(bytes), .ulong(count)],
            global: [count],
            local: [device.tuning.elementwiseWorkGroup]
        )
        var pixels = [UInt8](repeating: 0, count: count)
        try pixels.withUnsafeMutableBytes { try device.queue.read(bytes, into: $0) }
        return pixels
    }
}
