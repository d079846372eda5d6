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

    /// The values where a mask is 1, a weighted sum of two others where it is 0, and of both in between: m x + (1 - m) (f a + g b).
    ///
    /// All of the same shape, float32 (traps otherwise); allocated.
    public func masked(by mask: Tensor, elsewhere terms: [(factor: Float, tensor: Tensor)]) throws -> Tensor {
        precondition(
            terms.count == 2
                && ([mask, self] + terms.map(\.tensor)).allSatisfy { $0.elementType == .float32 && $0.shape == shape },
            "\(shape) masked by \(mask.shape)"
        )
        let y = try Tensor(shape, .float32, on: device)
        try device.kernel("masked", file: "elementwise.cl", arguments: 8).enqueue(
            [
                .buffer(buffer), .buffer(mask.buffer), .buffer(terms[0].tensor.buffer), .buffer(terms[1].tensor.buffer),
                .buffer(y.buffer), .float(terms[0].factor), .float(terms[1].factor), .ulong(count),
            ],
            global: [count],
            local: [device.tuning.elementwiseWorkGroup]
        )
        return y
    }

    /// The GEGLU of values and gates that stand as the outputs of `weights.ungated`: value * gelu(gate), allocated.
    ///
    /// `[..., 2 * O]` (or more, with padding) of activation type to `[..., O]`.
    /// - Parameter type: Storage of the result, activation or operand type.
    public func gated(_ weights: ConvolutionWeights, as type: ElementType) throws -> Tensor {
        precondition(elementType == device.activationType, "gates of \(elementType)")
        let y = try Tensor(shape.dropLast() + [weights.outChannels], type, on: device)
        let macros = type == device.activationType ? [:] : ["OUTPUT": type.rawValue]
        let workGroup = device.tuning.elementwiseWorkGroup
        try device.kernel("gated_values", file: "elementwise.cl", macros: macros, arguments: 5).enqueue(
            [
                .buffer(buffer), .buffer(y.buffer), .int(channels), .int(weights.outChannels),
                .int(weights.gateDistance),
            ],
            global: [rows * ((weights.outChannels + workGroup - 1) / workGroup) * workGroup],
            local: [workGroup]
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

    /// Puts rows of another tensor in the place of some of this one's, in this one's memory.
    ///
    /// - Parameters:
    ///   - positions: One of this tensor's rows (traps otherwise) for each row of the other.
    ///   - other: Of the same channels and type.
    public func replaceRows(at positions: [Int], with other: Tensor) throws {
        precondition(
            other.rows == positions.count && other.channels == channels,
            "\(other.shape) into rows of \(shape)"
        )
        precondition(other.elementType == elementType, "rows of \(other.elementType) into \(elementType)")
        precondition(positions.allSatisfy { 0..<rows ~= $0 }, "rows at \(positions) of \(shape)")
        let rowBytes = channels * elementType.byteCount
        for (index, position) in positions.enumerated() {
            try device.queue.copyRows(
                from: other.buffer,
                sourceOffset: index * rowBytes,
                to: buffer,
                destinationOffset: position * rowBytes,
                rowBytes: rowBytes,
                rows: 1,
                sourcePitch: rowBytes,
                destinationPitch: rowBytes
            )
        }
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

    /// What a model made of a batch with guidance: u + scale (c - u), allocated.
    ///
    /// `[2, ...]` with the unconditional half first, to `[1, ...]` float32.
    public func guided(scale: Float) throws -> Tensor {
        precondition(shape[0] == 2, "guidance of a batch of \(shape)")
        let y = try Tensor([1] + shape.dropFirst(), .float32, on: device)
        try device.kernel("guidance", file: "elementwise.cl", arguments: 4).enqueue(
            [.buffer(buffer), .buffer(y.buffer), .float(scale), .ulong(y.count)],
            global: [y.count],
            local: [device.tuning.elementwiseWorkGroup]
        )
        return y
    }

    /// The sum of tensors of one shape, each multiplied by its factor; float32, allocated.
    ///
    /// - Parameter terms: At least one (traps), all float32.
    public static func weightedSum(_ terms: [(factor: Float, tensor: Tensor)]) throws -> Tensor {
        // As many as the kernel takes at a time; the sum of those is the first of the next.
        let now = terms.prefix(4)
        guard let first = now.first?.tensor else { preconditionFailure("a sum of nothing") }
        precondition(
            terms.allSatisfy { $0.tensor.elementType == .float32 && $0.tensor.shape == first.shape },
            "a sum of \(terms.map { "\($0.tensor.elementType) \($0.tensor.shape)" })"
        )
        let y = try Tensor(first.shape, .float32, on: first.device)
        // Places beyond the last term are filled with what the kernel will not read.
        let padded = Array(now) + Array(repeating: (factor: Float(0), tensor: first), count: 4 - now.count)
        let buffers = padded.map { KernelArgument.buffer($0.tensor.buffer) }
        let factors = padded.map { KernelArgument.float($0.factor) }
        try first.device.kernel("weighted_sum", file: "elementwise.cl", arguments: 11).enqueue(
            buffers + factors + [.int(now.count), .buffer(y.buffer), .ulong(y.count)],
            global: [y.count],
            local: [first.device.tuning.elementwiseWorkGroup]
        )
        let rest = terms.dropFirst(now.count)
        return rest.isEmpty ? y : try weightedSum([(factor: Float(1), tensor: y)] + Array(rest))
    }
}
