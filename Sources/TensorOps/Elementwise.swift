// The passes over memory no other operator absorbs: Kernels/elementwise.cl, and concatenation by copies.

internal import OpenCLRuntime

extension Tensor {
    /// The same values in another storage type; itself if it has that type already.
    public func converted(to type: ElementType) throws -> Tensor {
        if type == elementType { return self }
        precondition(type == .float32 || elementType == .float32, "conversion from \(elementType) to \(type)")
        let stored = type == .float32 ? elementType : type
        let y = try Tensor(shape, type, on: device)
        let name = type == .float32 ? "to_float" : "from_float"
        try device.kernel(name, file: "elementwise.cl", macros: ["STORED": stored.rawValue], arguments: 3).enqueue(
            [.buffer(buffer), .buffer(y.buffer), .ulong(count)],
            global: [count],
            local: [device.tuning.elementwiseWorkGroup]
        )
        return y
    }

    /// `[..., A]` and `[..., B]` side by side: `[..., A + B]`, allocated.
    public func concatenated(with other: Tensor) throws -> Tensor {
        precondition(shape.dropLast() == other.shape.dropLast(), "concatenation of \(shape) and \(other.shape)")
        precondition(elementType == other.elementType, "concatenation of \(elementType) and \(other.elementType)")
        let y = try Tensor(shape.dropLast() + [channels + other.channels], elementType, on: device)
        let size = elementType.byteCount
        for (part, offset) in [(self, 0), (other, channels)] {
            try device.queue.copyRows(
                from: part.buffer,
                to: y.buffer,
                destinationOffset: offset * size,
                rowBytes: part.channels * size,
                rows: rows,
                sourcePitch: part.channels * size,
                destinationPitch: y.channels * size
            )
        }
        return y
    }

    /// y = f(x + other), of activation type, allocated.
    public func sum(with other: Tensor, function: ActivationFunction = .none) throws -> Tensor {
        precondition(shape == other.shape, "sum of \(shape) and \(other.shape)")
        for tensor in [self, other] {
            precondition(tensor.elementType == device.activationType, "sum of \(tensor.elementType)")
        }
        let y = try Tensor(shape, on: device)
        let macros = ["FUNCTION": function.rawValue]
        try device.kernel("activated_sum", file: "elementwise.cl", macros: macros, arguments: 4).enqueue(
            [.buffer(buffer), .buffer(other.buffer), .buffer(y.buffer), .ulong(count)],
            global: [count],
            local: [device.tuning.elementwiseWorkGroup]
        )
        return y
    }

    /// Row `positions[b]` of each `[T, C]` of `[B, T, C]`: `[B, C]`, allocated.
    public func rows(at positions: [Int]) throws -> Tensor {
        precondition(shape.count == 3 && shape[0] == positions.count, "\(positions.count) rows of \(shape)")
        precondition(positions.allSatisfy { 0..<shape[1] ~= $0 }, "rows at \(positions) of \(shape)")
        let y = try Tensor([shape[0], channels], elementType, on: device)
        let rowBytes = channels * elementType.byteCount
        for (index, position) in positions.enumerated() {
            try device.queue.copyRows(
                from: buffer,
                sourceOffset: (index * shape[1] + position) * rowBytes,
                to: y.buffer,
                destinationOffset: index * rowBytes,
                rowBytes: rowBytes,
                rows: 1,
                sourcePitch: rowBytes,
                destinationPitch: rowBytes
            )
        }
        return y
    }

    /// `[A, ...]` and `[B, ...]` one after the other along the batch: `[A + B, ...]`, allocated.
    public func appending(_ other: Tensor) throws -> Tensor {
        precondition(shape.dropFirst() == other.shape.dropFirst(), "appending \(other.shape) to \(shape)")
        return try reshaped([1, count]).concatenated(with: other.reshaped([1, other.count]))
            .reshaped([shape[0] + other.shape[0]] + shape.dropFirst())
    }

    /// What a model is given at a step: the latents times `scale`, `copies` times along the batch.
    ///
    /// `[1, H, W, C]` float32 to `[copies, H, W, C]` activation type, allocated.
    public func modelInput(scale: Float, copies: Int) throws -> Tensor {
        precondition(elementType == .float32, "latents of \(elementType)")
        let y = try Tensor([shape[0] * copies] + shape.dropFirst(), on: device)
        try device.kernel("model_input", file: "elementwise.cl", arguments: 5).enqueue(
            [.buffer(buffer), .buffer(y.buffer), .float(scale), .int(copies), .ulong(count)],
            global: [count],
            local: [device.tuning.elementwiseWorkGroup]
        )
        return y
    }

    /// Guidance and the sampler's update of the latents in one pass, in place:
    /// x = sampleScale x + outputScale (u + guidance (c - u)).
    ///
    /// - Parameters:
    ///   - output: The model's output, `[2, H, W, C]` with the unconditional half first, or `[1, H, W, C]` without guidance.
    ///   - guidance: The guidance scale; nil without guidance.
    public func guidedStep(output: Tensor, guidance: Float?, sampleScale: Float, outputScale: Float) throws {
        precondition(elementType == .float32, "latents of \(elementType)")
        precondition(output.count == count * (guidance == nil ? 1 : 2), "output \(output.shape) for latents \(shape)")
        try device.kernel("guided_step", file: "elementwise.cl", arguments: 7).enqueue(
            [
                .buffer(output.buffer), .buffer(buffer), .int(guidance == nil ? 0 : 1), .float(guidance ?? 1),
                .float(sampleScale), .float(outputScale), .ulong(count),
            ],
            global: [count],
            local: [device.tuning.elementwiseWorkGroup]
        )
    }
}
