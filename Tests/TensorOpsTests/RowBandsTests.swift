// Pictures in bands of rows: windows, group normalisation over all bands, and convolutions band by band, against the whole.

import OpenCLRuntime
import TensorOps
import TestSupport
import Testing

struct RowBandsCase: Sendable, CustomTestStringConvertible {
    /// Of the picture, `[1, H, W, C]`.
    let shape: [Int]
    let bandRows: Int
    var groups = 1
    var function = ActivationFunction.none
    var mean: Float = 0

    var testDescription: String {
        "\(shape) in bands of \(bandRows), \(groups) groups" + (function == .none ? "" : ", \(function)")
            + (mean == 0 ? "" : ", mean \(mean)")
    }

    var picture: HostTensor { HostTensor.random(shape, seed: 51, mean: mean) }
}

/// Work-items take chunks of 256 pixels and vectors of 4 to 16 channels; bands can have a remainder, one row, or be the whole.
let oddRowBands = [
    RowBandsCase(shape: [1, 1, 1, 1], bandRows: 1),
    RowBandsCase(shape: [1, 3, 2, 6], bandRows: 1, groups: 3),
    RowBandsCase(shape: [1, 7, 9, 3], bandRows: 2, groups: 3, function: .silu),
    RowBandsCase(shape: [1, 7, 9, 20], bandRows: 7, groups: 5, function: .silu),
    RowBandsCase(shape: [1, 13, 31, 33], bandRows: 12, groups: 11),
    RowBandsCase(shape: [1, 16, 64, 16], bandRows: 8, groups: 4, function: .silu),
    RowBandsCase(shape: [1, 9, 257, 5], bandRows: 4, groups: 1),
]

@Suite(.requiresDevice)
@DeviceActor
struct RowBandsTests {
    private func rows(_ x: HostTensor, _ range: Range<Int>) -> [Float] {
        let row = x.shape[2] * x.channels
        return Array(x.values[range.lowerBound * row..<range.upperBound * row])
    }

    /// The picture as separate tensors, each with the rows of its window, of which those outside the band are no numbers.
    private func separate(_ x: HostTensor, _ item: RowBandsCase, on device: TensorDevice) throws -> RowBands {
        let bands = RowBands(height: x.shape[1], bandRows: item.bandRows)
        let row = x.shape[2] * x.channels
        for index in bands.indices {
            let first = index * item.bandRows
            let values =
                [Float](repeating: .nan, count: (bands.rowsAbove(index) + 1) * row)
                + rows(x, first..<first + bands.rows(index)) + [Float](repeating: .nan, count: 2 * row)
            let count = values.count / row
            try bands.append(
                device.tensor(values, shape: [1, count] + x.shape.dropFirst(2)),
                firstRow: bands.rowsAbove(index) + 1
            )
        }
        return bands
    }

    @Test(arguments: DeviceVariant.all, oddRowBands)
    func windowsAreTheBandWithItsNeighbours(_ variant: DeviceVariant, _ item: RowBandsCase) throws {
        let device = try variant.device()
        let x = item.picture.rounded(to: variant.activations)
        for bands in [RowBands(try device.upload(x), bandRows: item.bandRows), try separate(x, item, on: device)] {
            var top = 0
            for index in bands.indices {
                let end = top + bands.rows(index)
                let window = try bands.window(index)
                #expect(try window.floats() == rows(x, top - bands.rowsAbove(index)..<end + bands.rowsBelow(index)))
                let band = try bands.window(index, isExact: false)
                #expect(band.shape == window.shape)
                let above = bands.rowsAbove(index) * x.shape[2] * x.channels
                let values = try band.floats()[above...].prefix(bands.rows(index) * x.shape[2] * x.channels)
                #expect(Array(values) == rows(x, top..<end))
                top = end
            }
            #expect(top == x.shape[1])
            #expect(try bands.joined().floats() == x.values)
        }
    }

    @Test(arguments: DeviceVariant.all + DeviceVariant.shorterVectors, oddRowBands)
    func groupNormIsThatOfTheWhole(_ variant: DeviceVariant, _ item: RowBandsCase) throws {
        try check(variant, item, .groupNorm)
    }

    @Test(arguments: [DeviceVariant(.cpu, .float32), DeviceVariant(.gpu, .float16)])
    func groupNormOfRealSize(_ variant: DeviceVariant) throws {
        try check(
            variant,
            RowBandsCase(shape: [1, 128, 128, 512], bandRows: 16, groups: 32, function: .silu),
            .groupNorm
        )
    }

    @Test(arguments: [DeviceVariant(.cpu, .float32), DeviceVariant(.plain, .float32), DeviceVariant(.gpu, .float32)])
    func groupNormKeepsItsPrecisionFarFromZero(_ variant: DeviceVariant) throws {
        try check(
            variant,
            RowBandsCase(shape: [1, 40, 33, 24], bandRows: 16, groups: 3, mean: 1000),
            .normOfDistantMean
        )
    }

    private func check(_ variant: DeviceVariant, _ item: RowBandsCase, _ tolerance: OperatorTolerance) throws {
        let device = try variant.device()
        let x = item.picture.rounded(to: variant.activations)
        let gamma = HostTensor.random([x.channels], seed: 52, mean: 1, deviation: 0.3).values
        let beta = HostTensor.random([x.channels], seed: 53, deviation: 0.3).values
        let weights = try NormWeights(gamma: gamma, beta: beta, on: device)
        let expected = referenceGroupNorm(
            x,
            gamma: gamma,
            beta: beta,
            groups: item.groups,
            epsilon: 1e-6,
            function: item.function
        )
        let bands = try separate(x, item, on: device)
        let normalization = try bands.normalization(
            weights,
            groups: item.groups,
            epsilon: 1e-6,
            function: item.function
        )
        let row = x.shape[2] * x.channels
        // Windows together, so that the bound's mean square is the picture's.
        var (actual, references): ([Float], [Double]) = ([], [])
        for index in bands.indices {
            let window = try bands.window(index, normalization)
            #expect(window.elementType == variant.operands)
            actual += try window.floats()
            let first = index * item.bandRows - bands.rowsAbove(index)
            references += expected[first * row..<(first + window.shape[1]) * row]
        }
        expectClose(
            actual,
            references,
            tolerance.bound(variant.operands),
            "\(variant.testDescription), \(item.testDescription)"
        )
    }

    /// A 3x3 convolution of windows, joined, is the convolution of the whole, and so is one that enlarges first.
    @Test(arguments: DeviceVariant.all, [1, 2, 5, 11])
    func convolvesBandByBand(_ variant: DeviceVariant, _ bandRows: Int) throws {
        let device = try variant.device()
        let x = HostTensor.random([1, 11, 7, 18], seed: 54).rounded(to: variant.activations)
        let weight = HostTensor.random([9, 18, 3, 3], seed: 55, deviation: 0.1)
        let weights = try device.convolutionWeights([weight], bias: HostTensor.random([9], seed: 56).values)
        let whole = try device.upload(x)
        let bands = RowBands(whole, bandRows: bandRows)
        let (convolved, enlarged) = (
            RowBands(height: 11, bandRows: bandRows), RowBands(height: 22, bandRows: 2 * bandRows)
        )
        for index in bands.indices {
            let window = try bands.window(index)
            try convolved.append(window.convolution(weights), firstRow: bands.rowsAbove(index))
            try enlarged.append(
                window.convolution(weights, upsampledTo: (2 * window.shape[1], 14)),
                firstRow: 2 * bands.rowsAbove(index)
            )
        }
        let tolerance = OperatorTolerance.convolution.bound(variant.activations)
        let once = try whole.convolution(weights).floats().map { Double($0) }
        expectClose(try convolved.joined().floats(), once, tolerance, "convolution")
        let twice = try whole.convolution(weights, upsampledTo: (22, 14)).floats().map { Double($0) }
        expectClose(try enlarged.joined().floats(), twice, tolerance, "enlarging convolution")
    }

    @Test func releasedBandsGiveTheirMemoryBack() throws {
        let device = try DeviceVariant(.cpu, .float32).device()
        let before = device.pool.heldBytes - device.pool.unusedBytes
        let bands = RowBands(height: 8, bandRows: 4)
        for index in bands.indices {
            try bands.append(Tensor([1, 5, 64, 64], on: device), firstRow: bands.rowsAbove(index))
        }
        let inUse = device.pool.heldBytes - device.pool.unusedBytes
        #expect(inUse - before >= 2 * 5 * 64 * 64 * 4)
        bands.release(0)
        #expect(device.pool.heldBytes - device.pool.unusedBytes == before + (inUse - before) / 2)
        bands.release(1)
        #expect(device.pool.heldBytes - device.pool.unusedBytes == before)
    }
}
