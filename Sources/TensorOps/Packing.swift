// Weights on their way to the device: given to it as the checkpoint stores them, converted and packed by Kernels/packing.cl.

internal import OpenCLRuntime

/// A tensor of a checkpoint, in host memory, as it is stored.
public struct WeightSource {
    /// The elements, row-major, little-endian.
    public let bytes: UnsafeRawBufferPointer
    /// Their type.
    public let type: ElementType
    /// Output channels (the outermost extent).
    public let outChannels: Int

    /// A source; `bytes` must stay valid until the weights made of it are there.
    public init(bytes: UnsafeRawBufferPointer, type: ElementType, outChannels: Int) {
        self.bytes = bytes
        self.type = type
        self.outChannels = outChannels
    }

    var count: Int { bytes.count / type.byteCount }
}

/// Weights of a convolution or of a linear layer, in the form the device's kernels read.
public final class ConvolutionWeights {
    enum Form {
        /// Panels for `convolution_*`.
        case packed
        /// Blocks of 32 x 32 for `convolution_mma`, with panels of 32 output channels.
        case blocked
        /// Row-major `[outChannels, inChannels]` float32 for CLBlast.
        case rowMajor
    }

    /// Input channels C.
    public let inChannels: Int
    /// Output channels O; with GEGLU the number of values, half of the checkpoint's rows.
    public let outChannels: Int
    /// Extent of the square kernel: 1 or 3.
    public let kernelSize: Int
    /// Whether the outputs are values and gates of a GEGLU.
    public let isGEGLU: Bool
    /// Whether they are a linear layer's rather than a convolution's.
    public let isLinear: Bool
    let form: Form
    /// Output channels of a panel in blocked form.
    static let blockWidth = 32
    /// Whether two neighbouring input channels stand together, to be multiplied at once.
    let isPaired: Bool
    let weights: Buffer
    let bias: Buffer
    /// The bias in the order of `ungated`'s outputs, where that is another.
    private let ungatedBias: Buffer?
    /// Rows with the padding of the last panel.
    private let paddedRows: Int
    /// Output channels of a panel.
    private let panelWidth: Int

    /// Uploads and packs weights.
    ///
    /// - Parameters:
    ///   - sources: `[O, C, k, k]` (or `[O, C]`) tensors whose output channels are concatenated, such as query, key and value.
    ///   - bias: Bias of the concatenated channels, float32; nil for none.
    ///   - inChannels: C.
    ///   - kernelSize: k, 1 or 3 (traps otherwise).
    ///   - isGEGLU: One source whose first half are values, the second their gates.
    ///   - isLinear: Whether CLBlast may compute it.
    /// - Throws: `OpenCLError`, `KernelError`.
    public init(
        _ sources: [WeightSource],
        bias: [Float]?,
        inChannels: Int,
        kernelSize: Int = 1,
        isGEGLU: Bool = false,
        isLinear: Bool = false,
        on device: TensorDevice
    ) throws {
        precondition(kernelSize == 1 || kernelSize == 3, "kernel size \(kernelSize)")
        let rows = sources.reduce(0) { $0 + $1.outChannels }
        self.inChannels = inChannels
        self.kernelSize = kernelSize
        self.isGEGLU = isGEGLU
        self.isLinear = isLinear
        outChannels = isGEGLU ? rows / 2 : rows
        let usesCLBlast = isLinear && device.gemmProvider(inChannels, rows) == .clblast
        // Its pieces of 8 channels must not straddle pixels.
        let isBlocked = !usesCLBlast && device.tuning.family == .nvidia && inChannels % 8 == 0
        form = usesCLBlast ? .rowMajor : isBlocked ? .blocked : .packed
        isPaired =
            !usesCLBlast && inChannels % 2 == 0 && device.operandType == .bfloat16 && device.weightType == .bfloat16
            && device.activationType == .float32

        let panelWidth = isBlocked ? ConvolutionWeights.blockWidth : device.tuning.panelWidth
        let depth = isBlocked ? (inChannels + 31) / 32 * 32 : inChannels
        let panels = usesCLBlast ? 0 : (rows + panelWidth - 1) / panelWidth
        let paddedRows = usesCLBlast ? rows : panels * panelWidth
        self.paddedRows = paddedRows
        self.panelWidth = panelWidth
        let taps = kernelSize * kernelSize
        let elementBytes = usesCLBlast ? 4 : device.weightType.byteCount
        weights = try Buffer(device.queue, byteCount: paddedRows * taps * depth * elementBytes)
        self.bias = try Buffer(device.queue, byteCount: paddedRows * 4)
        ungatedBias = isGEGLU && isBlocked ? try Buffer(device.queue, byteCount: paddedRows * 4) : nil

        var firstRow = 0
        for source in sources {
            precondition(source.count == source.outChannels * inChannels * taps, "weight of \(source.count) elements")
            if usesCLBlast {
                try device.convert(source, into: weights, at: firstRow * inChannels)
            } else {
                try pack(source, at: firstRow, panels: panels, on: device)
            }
            firstRow += source.outChannels
        }

        // The bias takes the order of the packed channels.
        var packedBias = [Float](repeating: 0, count: paddedRows)
        if let bias {
            precondition(bias.count == rows, "bias of \(bias.count) elements for \(rows) channels")
            for row in 0..<rows {
                packedBias[isGEGLU && !usesCLBlast ? ConvolutionWeights.gegluRow(row, rows, panelWidth) : row] =
                    bias[row]
            }
        }
        try packedBias.withUnsafeBytes { try device.queue.write($0, to: self.bias) }
        if let ungatedBias {
            var ordered = [Float](repeating: 0, count: paddedRows)
            if let bias { for row in 0..<rows { ordered[ungatedRow(row)] = bias[row] } }
            try ordered.withUnsafeBytes { try device.queue.write($0, to: ungatedBias) }
        }
    }

    /// Another reading of packed weights.
    private init(_ weights: ConvolutionWeights, bias: Buffer, outChannels: Int) {
        inChannels = weights.inChannels
        self.outChannels = outChannels
        kernelSize = weights.kernelSize
        isGEGLU = false
        isLinear = weights.isLinear
        form = weights.form
        isPaired = weights.isPaired
        self.weights = weights.weights
        self.bias = bias
        ungatedBias = nil
        paddedRows = weights.paddedRows
        panelWidth = weights.panelWidth
    }

    // MARK: A GEGLU taken apart

    /// The same weights as a plain linear layer: values and gates before they meet, in the order of `ungatedRow`.
    ///
    /// What is to be added to a value or a gate is added to this layer's outputs; `Tensor.gated` then does the rest.
    public var ungated: ConvolutionWeights {
        precondition(isGEGLU, "a layer without gates")
        return ConvolutionWeights(self, bias: ungatedBias ?? bias, outChannels: paddedRows)
    }

    /// Where the output of the checkpoint's row `row` stands among those of `ungated`.
    public func ungatedRow(_ row: Int) -> Int {
        Self.gegluRow(row, 2 * outChannels, 2 * gateDistance)
    }

    /// How far a gate stands behind its value among the outputs of `ungated`, which is also how many values stand side by side.
    var gateDistance: Int {
        switch form {
        case .packed: panelWidth / 2
        // The kernel takes rows of both tiles in turn for neighbouring channels; see Kernels/convolution_mma.cl.
        case .blocked: 2
        case .rowMajor: outChannels
        }
    }

    /// Packs one of the sources, whose first output channel is packed channel `firstRow`.
    private func pack(_ source: WeightSource, at firstRow: Int, panels: Int, on device: TensorDevice) throws {
        let isBlocked = form == .blocked
        let panelWidth = isBlocked ? ConvolutionWeights.blockWidth : device.tuning.panelWidth
        let taps = kernelSize * kernelSize
        try device.withUploaded(source) { staging in
            if device.tuning.family == .cpu {
                let firstPanel = isGEGLU ? 0 : firstRow / panelWidth
                let endPanel = isGEGLU ? panels : (firstRow + source.outChannels + panelWidth - 1) / panelWidth
                let block = max(device.tuning.packedElements / (taps * panelWidth), device.tuning.vectorWidth)
                try device.kernel(
                    "pack_weights_cpu",
                    file: "packing.cl",
                    macros: ["PAIRED": isPaired ? 1 : 0, "SOURCE": source.type.rawValue, "PANEL": panelWidth],
                    arguments: 9
                ).enqueue(
                    [
                        .buffer(staging), .buffer(weights), .int(source.outChannels), .int(inChannels), .int(taps),
                        .int(firstRow), .int(isGEGLU ? 1 : 0), .int(firstPanel), .int(block),
                    ],
                    global: [endPanel - firstPanel, (inChannels + block - 1) / block],
                    local: [1, 1]
                )
            } else {
                try device.kernel(
                    "pack_weights",
                    file: "packing.cl",
                    macros: ["PAIRED": isPaired ? 1 : 0, "BLOCKED": isBlocked ? 1 : 0],
                    arguments: 9
                ).enqueue(
                    [
                        .buffer(staging), .buffer(weights), .int(source.type.rawValue), .int(source.outChannels),
                        .int(inChannels), .int(taps), .int(panelWidth), .int(firstRow), .int(isGEGLU ? 1 : 0),
                    ],
                    global: [panelWidth, isBlocked ? (inChannels + 31) / 32 * 32 : inChannels, panels],
                    local: [min(panelWidth, device.tuning.elementwiseWorkGroup), 1, 1]
                )
            }
        }
    }

    /// Where row `row` of a GEGLU's `rows` lands among the packed channels: each panel holds half values, half gates.
    private static func gegluRow(_ row: Int, _ rows: Int, _ panelWidth: Int) -> Int {
        let half = panelWidth / 2
        let isGate = row >= rows / 2
        let value = isGate ? row - rows / 2 : row
        return value / half * panelWidth + value % half + (isGate ? half : 0)
    }
}

/// Scale and shift of a normalisation, float32.
public final class NormWeights {
    /// C.
    public let channels: Int
    let gamma: Buffer
    let beta: Buffer

    /// Uploads scale and shift, one value a channel each (traps if the counts differ).
    public init(gamma: [Float], beta: [Float], on device: TensorDevice) throws {
        precondition(gamma.count == beta.count, "\(gamma.count) scales, \(beta.count) shifts")
        channels = gamma.count
        self.gamma = try Buffer(device.queue, byteCount: gamma.count * 4)
        self.beta = try Buffer(device.queue, byteCount: beta.count * 4)
        try gamma.withUnsafeBytes { try device.queue.write($0, to: self.gamma) }
        try beta.withUnsafeBytes { try device.queue.write($0, to: self.beta) }
    }
}

/// Token and position embeddings of the text encoder.
public final class EmbeddingWeights {
    /// Rows of the token table.
    public let vocabularySize: Int
    /// C.
    public let channels: Int
    let table: Buffer
    let positions: Buffer

    /// Uploads the token table `[vocabulary, C]` in the device's weight type and the positions `[T, C]` in float32.
    public init(table: WeightSource, positions: [Float], channels: Int, on device: TensorDevice) throws {
        vocabularySize = table.outChannels
        self.channels = channels
        self.table = try Buffer(device.queue, byteCount: table.count * device.weightType.byteCount)
        self.positions = try Buffer(device.queue, byteCount: positions.count * 4)
        try positions.withUnsafeBytes { try device.queue.write($0, to: self.positions) }
        try device.withUploaded(table) { staging in
            let kernel = try device.kernel("convert_weights", file: "packing.cl", arguments: 4)
            try kernel.enqueue(
                [.buffer(staging), .buffer(self.table), .int(table.type.rawValue), .ulong(table.count)],
                global: [table.count],
                local: [device.tuning.elementwiseWorkGroup]
            )
        }
    }
}

extension TensorDevice {
    /// Gives a source as it is to the device for the duration of `body`, which enqueues the kernel that reads it.
    ///
    /// A processor reads it where it is, which for a mapped file is the page cache; other devices get a copy.
    func withUploaded(_ source: WeightSource, _ body: (Buffer) throws -> Void) throws {
        let isAligned = Int(bitPattern: source.bytes.baseAddress) % source.type.byteCount == 0
        if queue.device.kind == .cpu, isAligned, !source.bytes.isEmpty {
            try body(Buffer(queue, reading: source.bytes))
            // The caller's memory may go when this returns.
            try queue.finish()
            return
        }
        let staging = try pool.take(source.bytes.count)
        defer { pool.give(staging) }
        try queue.write(source.bytes, to: staging)
        try body(staging)
    }

    /// Converts a source to float32 at an element offset of a buffer.
    func convert(_ source: WeightSource, into buffer: Buffer, at offset: Int) throws {
        try withUploaded(source) { staging in
            let kernel = try kernel("unpack_float", file: "packing.cl", arguments: 5)
            try kernel.enqueue(
                [.buffer(staging), .buffer(buffer), .int(source.type.rawValue), .ulong(source.count), .ulong(offset)],
                global: [source.count],
                local: [tuning.elementwiseWorkGroup]
            )
        }
    }
}
