// Group and layer normalisation: Kernels/normalization.cl.

internal import OpenCLRuntime

extension Tensor {
    /// Group normalisation over `[N, ..., C]`, optionally followed by an activation function.
    ///
    /// - Parameters:
    ///   - weights: Scale and shift of C channels (traps otherwise).
    ///   - groups: A divisor of C (traps otherwise).
    ///   - epsilon: Added to the variance.
    ///   - function: Applied to the result.
    /// - Returns: The same shape, operand type, allocated.
    /// - Throws: `OpenCLError`, `KernelError`.
    public func groupNorm(
        _ weights: NormWeights,
        groups: Int,
        epsilon: Float,
        function: ActivationFunction = .none
    ) throws -> Tensor {
        precondition(channels == weights.channels && channels % groups == 0, "group norm of \(shape), \(groups) groups")
        precondition(elementType == device.activationType, "group norm of \(elementType)")
        let tuning = device.tuning
        let batch = shape[0]
        let pixels = rows / batch
        let y = try Tensor(shape, device.operandType, on: device)
        let gamma = KernelArgument.buffer(weights.gamma)
        let beta = KernelArgument.buffer(weights.beta)
        let sizes: [KernelArgument] = [.int(pixels), .int(channels), .int(groups), .float(epsilon)]
        switch tuning.family {
        case .plain:
            try kernel("group_norm_plain", ["FUNCTION": function.rawValue], arguments: 8)
                .enqueue([.buffer(buffer), gamma, beta, .buffer(y.buffer)] + sizes, global: [groups, batch])
        case .gpu, .nvidia:
            let slab = tuning.normSlab(channels: channels, groups: groups, elementBytes: elementType.byteCount)
            let slabs = (groups + slab.groups - 1) / slab.groups
            let chunkPixels = tuning.normChunkPixels(pixels: pixels, slabs: slabs * batch, rows: slab.rows)
            let chunks = (pixels + chunkPixels - 1) / chunkPixels
            let macros = normMacros(piece: slab.piece).merging(["FUNCTION": function.rawValue]) { $1 }
            let arguments =
                [.buffer(buffer), gamma, beta, .buffer(y.buffer)] + sizes + [KernelArgument.int(slab.groups)]
            let global = [tuning.normWorkGroup * slabs, chunks, batch]
            let local = [tuning.normWorkGroup, 1, 1]
            guard chunks > 1 else {
                try kernel("group_norm_gpu", macros, arguments: 9).enqueue(arguments, global: global, local: local)
                break
            }
            let statistics = try Tensor([batch, groups, chunks, 2], .float32, on: device)
            try kernel("group_norm_chunk_gpu", macros, arguments: 7).enqueue(
                [
                    .buffer(buffer), .buffer(statistics.buffer), .int(pixels), .int(channels), .int(groups),
                    .int(slab.groups), .int(chunkPixels),
                ],
                global: global,
                local: local
            )
            try kernel("group_norm_apply_gpu", macros, arguments: 11).enqueue(
                arguments + [.buffer(statistics.buffer), .int(chunkPixels)],
                global: global,
                local: local
            )
        case .cpu:
            let macros = ["CHUNK": tuning.normChunk, "FUNCTION": function.rawValue]
            let chunks = (pixels + tuning.normChunk - 1) / tuning.normChunk
            let statistics = try Tensor([batch, chunks, 2, channels], on: device)
            let affine = try Tensor([batch, 2, channels], on: device)
            try kernel("group_norm_chunk_cpu", macros, arguments: 4).enqueue(
                [.buffer(buffer), .buffer(statistics.buffer), .int(pixels), .int(channels)],
                global: [chunks, batch],
                local: [1, 1]
            )
            try kernel("group_norm_combine_cpu", macros, arguments: 7).enqueue(
                [.buffer(statistics.buffer), gamma, .buffer(affine.buffer)] + sizes,
                global: [groups, batch],
                local: [1, 1]
            )
            try kernel("group_norm_apply_cpu", macros, arguments: 6).enqueue(
                [.buffer(buffer), .buffer(affine.buffer), beta, .buffer(y.buffer), .int(pixels), .int(channels)],
                global: [chunks, batch],
                local: [1, 1]
            )
        }
        return y
    }

    /// Layer normalisation over the innermost extent.
    ///
    /// - Returns: The same shape, operand type, allocated.
    /// - Throws: `OpenCLError`, `KernelError`.
    public func layerNorm(_ weights: NormWeights, epsilon: Float) throws -> Tensor {
        precondition(channels == weights.channels, "layer norm of \(shape) with \(weights.channels) channels")
        precondition(elementType == device.activationType, "layer norm of \(elementType)")
        let tuning = device.tuning
        let y = try Tensor(shape, device.operandType, on: device)
        let arguments: [KernelArgument] = [
            .buffer(buffer), .buffer(weights.gamma), .buffer(weights.beta), .buffer(y.buffer),
        ]
        let sizes: [KernelArgument] = [.int(channels), .float(epsilon)]
        switch tuning.family {
        case .plain:
            try kernel("layer_norm_plain", [:], arguments: 6).enqueue(arguments + sizes, global: [rows])
        case .gpu, .nvidia:
            let team = min(tuning.normTeam, tuning.normWorkGroup)
            let rowsOfGroup = tuning.normWorkGroup / team
            let piece = tuning.normPiece(channels: channels, elementBytes: elementType.byteCount)
            try kernel("layer_norm_gpu", normMacros(piece: piece).merging(["TEAM": team]) { $1 }, arguments: 7).enqueue(
                arguments + [.int(rows)] + sizes,
                global: [tuning.normWorkGroup * ((rows + rowsOfGroup - 1) / rowsOfGroup)],
                local: [tuning.normWorkGroup]
            )
        case .cpu:
            try kernel("layer_norm_cpu", ["CHUNK": tuning.normChunk, "FUNCTION": 0], arguments: 7).enqueue(
                arguments + [.int(rows)] + sizes,
                global: [(rows + tuning.normChunk - 1) / tuning.normChunk],
                local: [1]
            )
        }
        return y
    }

    /// The macros of the GPU family's kernels.
    private func normMacros(piece: Int) -> [String: Int] {
        ["WG": device.tuning.normWorkGroup, "PIECE": piece].merging(piece == 1 ? [:] : ["VEC": piece]) { $1 }
    }

    private func kernel(_ name: String, _ macros: [String: Int], arguments: Int) throws -> Kernel {
        try device.kernel(name, file: "normalization.cl", macros: macros, arguments: arguments)
    }
}
