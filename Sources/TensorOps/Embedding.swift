// Token and position embeddings: Kernels/embedding.cl.

internal import OpenCLRuntime

extension TensorDevice {
    /// Token plus position embeddings.
    ///
    /// - Parameters:
    ///   - ids: B rows of T token ids each, all below the vocabulary size (traps otherwise).
    ///   - weights: The tables.
    /// - Returns: `[B, T, C]`, activation type, allocated.
    /// - Throws: `OpenCLError`, `KernelError`.
    public func embedding(_ ids: [[Int32]], _ weights: EmbeddingWeights) throws -> Tensor {
        let tokens = ids.first?.count ?? 0
        precondition(ids.allSatisfy { $0.count == tokens }, "rows of different lengths")
        let flat = ids.flatMap { $0 }
        precondition(flat.allSatisfy { $0 >= 0 && Int($0) < weights.vocabularySize }, "token id beyond the vocabulary")
        let y = try Tensor([ids.count, tokens, weights.channels], on: self)
        let idBuffer = try pool.take(flat.count * 4)
        defer { pool.give(idBuffer) }
        try flat.withUnsafeBytes { try queue.write($0, to: idBuffer) }
        try kernel("token_embedding", file: "embedding.cl", arguments: 6).enqueue(
            [
                .buffer(idBuffer), .buffer(weights.table), .buffer(weights.positions), .buffer(y.buffer), .int(tokens),
                .int(weights.channels),
            ],
            global: [weights.channels, flat.count],
            local: [tuning.elementwiseWorkGroup, 1]
        )
        return y
    }
}
