// A picture kept as bands of rows, for layers whose whole input and output would not fit: Kernels/row_bands.cl. Each layer is computed band by
// band from a window, the band with the rows that a 3x3 kernel reads above and below it; statistics of normalisations are those of the whole
// picture. So the result is the whole picture's, up to rounding, and there are no seams.

internal import OpenCLRuntime

/// `[1, H, W, C]` in bands of rows, activation type, each in memory of its own that is released when the band is no longer needed.
///
/// A reference, so that releasing a band releases its memory whoever else knows the picture.
public final class RowBands {
    /// Rows of a picture within a tensor `[1, rows, W, C]`, which may have others above and below, of undefined contents.
    private struct Band {
        let tensor: Tensor
        /// The tensor's row that is the band's first.
        let firstRow: Int
    }

    /// H.
    public let height: Int
    /// Rows of every band but the last, which may have fewer.
    public let bandRows: Int
    private var bands: [Band?] = []

    /// A picture of bands that are appended, from the top downwards.
    public init(height: Int, bandRows: Int) {
        precondition(height > 0 && bandRows > 0, "\(height) rows in bands of \(bandRows)")
        self.height = height
        self.bandRows = bandRows
    }

    /// A whole tensor `[1, H, W, C]` as bands; its memory is released with the last of them.
    public convenience init(_ whole: Tensor, bandRows: Int) {
        precondition(whole.shape.count == 4 && whole.shape[0] == 1, "bands of \(whole.shape)")
        self.init(height: whole.shape[1], bandRows: bandRows)
        bands = indices.map { Band(tensor: whole, firstRow: $0 * bandRows) }
    }

    /// Numbers of all bands.
    public var indices: Range<Int> { 0..<(height + bandRows - 1) / bandRows }

    /// Rows of a band.
    public func rows(_ index: Int) -> Int { min(bandRows, height - index * bandRows) }

    /// Rows of a window above the band: one, but none at the picture's upper edge, where the convolution pads.
    public func rowsAbove(_ index: Int) -> Int { index > 0 ? 1 : 0 }

    /// Rows of a window below the band.
    public func rowsBelow(_ index: Int) -> Int { index < indices.upperBound - 1 ? 1 : 0 }

    /// Adds the next band.
    ///
    /// - Parameters:
    ///   - tensor: `[1, rows, W, C]`, activation type.
    ///   - firstRow: The row of the tensor with which the band begins. There are at least as many rows above and below the band's as a window
    ///     has; their contents do not matter.
    /// - Throws: `OpenCLError`.
    public func append(_ tensor: Tensor, firstRow: Int) throws {
        let index = bands.count
        precondition(index < indices.count, "a band below the last")
        let first = firstRow - rowsAbove(index)
        let count = rowsAbove(index) + rows(index) + rowsBelow(index)
        precondition(
            tensor.shape.count == 4 && first >= 0 && first + count <= tensor.shape[1],
            "band \(index) of \(rows(index)) rows in \(tensor.shape) from row \(firstRow) on"
        )
        // Every band is stored as its window is, so that an operator's results lie beside each other.
        if tensor.shape[1] == count {
            bands.append(Band(tensor: tensor, firstRow: firstRow))
            return
        }
        let row = tensor.shape[2] * tensor.channels * tensor.elementType.byteCount
        let cut = try Tensor([1, count] + tensor.shape.dropFirst(2), tensor.elementType, on: tensor.device)
        try tensor.device.queue.copy(
            from: tensor.buffer,
            at: first * row,
            to: cut.buffer,
            at: 0,
            byteCount: count * row
        )
        bands.append(Band(tensor: cut, firstRow: rowsAbove(index)))
    }

    /// Releases bands that no window will be made of any more.
    public func release(_ index: Int) {
        if bands.indices.contains(index) { bands[index] = nil }
    }

    private func band(_ index: Int) -> Band {
        guard let band = bands[index] else { preconditionFailure("band \(index) has been released") }
        return band
    }

    /// A band with the rows above and below it: `[1, rowsAbove + rows + rowsBelow, W, C]`, activation type.
    ///
    /// Allocated, unless the band's tensor is just that.
    ///
    /// - Parameter isExact: Whether the rows above and below are needed; without, their contents are undefined.
    /// - Throws: `OpenCLError`, `KernelError`.
    public func window(_ index: Int, isExact: Bool = true) throws -> Tensor {
        let band = band(index)
        let rows = rowsAbove(index) + rows(index) + rowsBelow(index)
        if !isExact && band.firstRow == rowsAbove(index) && band.tensor.shape[1] == rows { return band.tensor }
        let shape = [1, rows] + band.tensor.shape.dropFirst(2)
        let y = try Tensor(shape, band.tensor.elementType, on: band.tensor.device)
        let row = band.tensor.shape[2] * band.tensor.channels * band.tensor.elementType.byteCount
        try forEachPart(of: index, isExact: isExact) { source, sourceRow, targetRow, count in
            try y.device.queue.copy(
                from: source.buffer,
                at: sourceRow * row,
                to: y.buffer,
                at: targetRow * row,
                byteCount: count * row
            )
        }
        return y
    }

    /// What a window is made of: for up to three tensors, the first row in it, the first in the window, and how many.
    private func forEachPart(of index: Int, isExact: Bool = true, _ body: (Tensor, Int, Int, Int) throws -> Void) throws
    {
        let (above, rows) = (rowsAbove(index), rows(index))
        if isExact, above > 0 {
            let band = band(index - 1)
            try body(band.tensor, band.firstRow + bandRows - 1, 0, 1)
        }
        try body(band(index).tensor, band(index).firstRow, above, rows)
        if isExact, rowsBelow(index) > 0 { try body(band(index + 1).tensor, band(index + 1).firstRow, above + rows, 1) }
    }

    /// The whole picture in one tensor `[1, H, W, C]`, allocated; uses the bands up.
    ///
    /// - Throws: `OpenCLError`.
    public func joined() throws -> Tensor {
        let first = band(0).tensor
        let y = try Tensor([1, height] + first.shape.dropFirst(2), first.elementType, on: first.device)
        let row = first.shape[2] * first.channels * first.elementType.byteCount
        for index in indices {
            let band = band(index)
            try y.device.queue.copy(
                from: band.tensor.buffer,
                at: band.firstRow * row,
                to: y.buffer,
                at: index * bandRows * row,
                byteCount: rows(index) * row
            )
            release(index)
        }
        return y
    }

    /// A group normalisation of the whole picture, as its windows are normalised.
    public struct Normalization {
        fileprivate let affine: Tensor
        fileprivate let weights: NormWeights
        fileprivate let function: ActivationFunction
    }

    /// Pixels of a work-item.
    private static let chunk = 256

    /// The statistics of all bands; see `Tensor.groupNorm`.
    ///
    /// - Throws: `OpenCLError`, `KernelError`.
    public func normalization(
        _ weights: NormWeights,
        groups: Int,
        epsilon: Float,
        function: ActivationFunction = .none
    ) throws -> Normalization {
        let (device, width, channels) = (band(0).tensor.device, band(0).tensor.shape[2], band(0).tensor.channels)
        precondition(
            channels == weights.channels && channels % groups == 0,
            "group norm of \(channels), \(groups) groups"
        )
        func chunks(_ index: Int) -> Int { (rows(index) * width + RowBands.chunk - 1) / RowBands.chunk }
        let total = indices.reduce(0) { $0 + chunks($1) }
        let statistics = try Tensor([total, 3, channels], .float32, on: device)
        let affine = try Tensor([2, channels], .float32, on: device)
        let kernel = try kernel("band_statistics", arguments: 6, on: device)
        var first = 0
        for index in indices {
            let band = band(index)
            precondition(band.tensor.elementType == device.activationType, "group norm of \(band.tensor.elementType)")
            try kernel.enqueue(
                [
                    .buffer(band.tensor.buffer), .buffer(statistics.buffer), .ulong(band.firstRow * width * channels),
                    .int(rows(index) * width), .int(channels), .int(first),
                ],
                global: [vectors(channels, device), chunks(index)],
                local: local(device)
            )
            first += chunks(index)
        }
        try self.kernel("band_combine", arguments: 7, on: device).enqueue(
            [
                .buffer(statistics.buffer), .buffer(weights.gamma), .buffer(affine.buffer), .int(total), .int(channels),
                .int(groups), .float(epsilon),
            ],
            global: [groups],
            local: [1]
        )
        return Normalization(affine: affine, weights: weights, function: function)
    }

    /// A window, normalised: `[1, rowsAbove + rows + rowsBelow, W, C]`, operand type, allocated.
    ///
    /// - Throws: `OpenCLError`, `KernelError`.
    public func window(_ index: Int, _ normalization: Normalization) throws -> Tensor {
        let (device, width, channels) = (
            band(index).tensor.device, band(index).tensor.shape[2], band(index).tensor.channels
        )
        let rows = rowsAbove(index) + rows(index) + rowsBelow(index)
        let y = try Tensor([1, rows, width, channels], device.operandType, on: device)
        let kernel = try kernel("band_apply", normalization.function, arguments: 8, on: device)
        try forEachPart(of: index) { source, sourceRow, targetRow, count in
            try kernel.enqueue(
                [
                    .buffer(source.buffer), .buffer(normalization.affine.buffer), .buffer(normalization.weights.beta),
                    .buffer(y.buffer), .ulong(sourceRow * width * channels), .ulong(targetRow * width * channels),
                    .int(count * width), .int(channels),
                ],
                global: [vectors(channels, device), (count * width + RowBands.chunk - 1) / RowBands.chunk],
                local: local(device)
            )
        }
        return y
    }

    private func kernel(
        _ name: String,
        _ function: ActivationFunction = .none,
        arguments: Int,
        on device: TensorDevice
    ) throws -> Kernel {
        let macros = ["CHUNK": RowBands.chunk, "FUNCTION": function.rawValue]
        return try device.kernel(name, file: "row_bands.cl", macros: macros, arguments: arguments)
    }

    /// Vectors of a pixel: of the device's width on processors, of 4 elsewhere.
    private func vectors(_ channels: Int, _ device: TensorDevice) -> Int {
        let width = device.tuning.family == .cpu ? device.tuning.vectorWidth : 4
        return (channels + width - 1) / width
    }

    /// A work-group: one work-item on processors, else neighbouring vectors of a few chunks.
    private func local(_ device: TensorDevice) -> [Int] {
        let size = device.tuning.family == .cpu ? 1 : device.tuning.elementwiseWorkGroup
        return [min(size, 16), max(size / 16, 1)]
    }
}
