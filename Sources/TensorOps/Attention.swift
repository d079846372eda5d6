// Multi-head attention: Kernels/attention.cl.

internal import OpenCLRuntime

/// A range of columns of a token tensor: queries, keys or values as one linear layer made them side by side.
public struct Columns {
    let tensor: Tensor
    let offset: Int

    /// The columns of `[B, T, C]` from `offset` on.
    public init(_ tensor: Tensor, offset: Int = 0) {
        precondition(tensor.shape.count == 3, "columns of \(tensor.shape)")
        self.tensor = tensor
        self.offset = offset
    }

    var arguments: [KernelArgument] { [.buffer(tensor.buffer), .int(offset), .int(tensor.channels)] }
}

/// y = softmax(q kᵀ / √headSize) v for every head.
///
/// - Parameters:
///   - queries: `[B, T, heads * headSize]`, operand type.
///   - keys: `[B, S, heads * headSize]`, operand type.
///   - values: The shape of keys.
///   - isCausal: Whether token t sees tokens 0 ... t only.
/// - Returns: `[B, T, heads * headSize]`, operand type, allocated.
/// - Throws: `OpenCLError`, `KernelError`.
public func attention(
    queries: Columns,
    keys: Columns,
    values: Columns,
    heads: Int,
    headSize: Int,
    isCausal: Bool = false
) throws -> Tensor {
    let device = queries.tensor.device
    let (batch, tokens, keyCount) = (queries.tensor.shape[0], queries.tensor.shape[1], keys.tensor.shape[1])
    precondition(keys.tensor.shape[0] == batch && values.tensor.shape[0] == batch, "attention over different batches")
    precondition(values.tensor.shape[1] == keyCount, "\(keyCount) keys, \(values.tensor.shape[1]) values")
    for part in [queries, keys, values] {
        precondition(part.offset + heads * headSize <= part.tensor.channels, "columns beyond \(part.tensor.shape)")
        precondition(part.tensor.elementType == device.operandType, "attention of \(part.tensor.elementType)")
    }
    let y = try Tensor([batch, tokens, heads * headSize], device.operandType, on: device)
    let sizes: [KernelArgument] = [
        .int(tokens), .int(keyCount), .int(heads), .int(headSize), .float(1 / Float(headSize).squareRoot()),
        .int(isCausal ? 1 : 0),
    ]
    if try device.enqueueAttentionOnTensorCores(queries, keys, values, headSize: headSize, sizes: sizes, into: y) {
        return y
    }
    let tuning = device.tuning
    let tile = tuning.attentionTile(headSize: headSize)
    switch (tuning.family, tile) {
    case (.cpu, _) where headSize <= tuning.maxHeadSize:
        // Pairs are of neighbouring dimensions, so every head has to begin with a whole one.
        let isPaired =
            device.operandType == .bfloat16 && headSize % 2 == 0
            && [queries, keys, values].allSatisfy { $0.offset % 2 == 0 && $0.tensor.channels % 2 == 0 }
        let macros = [
            "ROWS": tuning.tileRows, "KEYS": tuning.attentionKeys, "MAX_D": tuning.maxHeadSize,
            "TILES": tuning.attentionTiles, "PAIRED": isPaired ? 1 : 0,
        ]
        let queryTile = tuning.tileRows * tuning.attentionTiles
        let span = 2 * tuning.vectorWidth
        let paddedKeys = (keyCount + span - 1) / span * span
        let paddedSize = (headSize + tuning.vectorWidth - 1) / tuning.vectorWidth * tuning.vectorWidth
        let packedType: ElementType = isPaired ? .bfloat16 : .float32
        let packedKeys = try Tensor([batch, heads, paddedKeys, headSize], packedType, isScratch: true, on: device)
        let packedValues = try Tensor([batch, heads, paddedKeys, paddedSize], packedType, isScratch: true, on: device)
        try device.kernel("attention_pack", file: "attention.cl", macros: macros, arguments: 11).enqueue(
            keys.arguments + values.arguments + [
                .buffer(packedKeys.buffer), .buffer(packedValues.buffer), .int(keyCount), .int(heads), .int(headSize),
            ],
            global: [paddedKeys, heads, batch],
            local: [2 * tuning.vectorWidth, 1, 1]
        )
        try device.kernel("attention_cpu", file: "attention.cl", macros: macros, arguments: 12).enqueue(
            queries.arguments + [.buffer(packedKeys.buffer), .buffer(packedValues.buffer), .buffer(y.buffer)] + sizes,
            global: [(tokens + queryTile - 1) / queryTile, heads, batch],
            local: [1, 1, 1]
        )
    case (.gpu, let tile?), (.nvidia, let tile?):
        let macros = ["HEAD_SIZE": headSize, "QUERIES": tile.queries, "KEYS": tile.keys]
        try device.kernel("attention_gpu", file: "attention.cl", macros: macros, arguments: 16).enqueue(
            queries.arguments + keys.arguments + values.arguments + [.buffer(y.buffer)] + sizes,
            global: [8, tokens, batch * heads],
            local: [8, tile.queries, 1]
        )
    default:
        try device.kernel("attention_plain", file: "attention.cl", arguments: 16).enqueue(
            queries.arguments + keys.arguments + values.arguments + [.buffer(y.buffer)] + sizes,
            global: [headSize, heads, batch * tokens]
        )
    }
    return y
}
