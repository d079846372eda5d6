// Attention in every form and storage type against double precision.

import TensorOps
import TestSupport
import Testing

struct AttentionCase: Sendable, CustomTestStringConvertible {
    var batch = 1
    let queries: Int
    let keys: Int
    let heads: Int
    let headSize: Int
    var isCausal = false
    /// Standard deviation of queries and keys; scores have its square.
    var deviation: Float = 1

    var testDescription: String {
        "\(batch) x \(queries) queries, \(keys) keys, \(heads) heads of \(headSize)" + (isCausal ? ", causal" : "")
            + (deviation == 1 ? "" : ", deviation \(deviation)")
    }

    /// Self-attention reads columns of one fused tensor; cross-attention reads queries alone and keys beside values.
    @DeviceActor
    func check(_ variant: DeviceVariant, tolerance: OperatorTolerance = .attention) throws {
        let device = try variant.device()
        let channels = heads * headSize
        let isSelf = queries == keys
        let x = HostTensor.random([batch, queries, isSelf ? 3 * channels : channels], seed: 21, deviation: deviation)
            .rounded(to: variant.operands)
        let context =
            isSelf
            ? x
            : HostTensor.random([batch, keys, 2 * channels], seed: 22, deviation: deviation).rounded(
                to: variant.operands
            )
        let (keyColumn, valueColumn) = isSelf ? (channels, 2 * channels) : (0, channels)
        let onDevice = try device.upload(x, as: device.operandType)
        let contextOnDevice = isSelf ? onDevice : try device.upload(context, as: device.operandType)
        let y = try attention(
            queries: Columns(onDevice),
            keys: Columns(contextOnDevice, offset: keyColumn),
            values: Columns(contextOnDevice, offset: valueColumn),
            heads: heads,
            headSize: headSize,
            isCausal: isCausal
        )
        #expect(y.shape == [batch, queries, channels])
        let actual = try y.floats()
        var found: [Float] = []
        var expected: [Double] = []
        for row in sample(batch * queries * heads, limit: 40) {
            let (head, token) = (row % heads, row / heads % queries)
            found += actual[row * headSize..<(row + 1) * headSize]
            expected += referenceAttention(
                queries: x,
                keys: context,
                values: context,
                columns: (head * headSize, keyColumn + head * headSize, valueColumn + head * headSize),
                headSize: headSize,
                batch: row / heads / queries,
                token: token,
                isCausal: isCausal
            )
        }
        expectClose(
            found,
            expected,
            (tolerance == .attention ? variant.attentionTolerance : tolerance).bound(variant.operands),
            "\(variant.testDescription), \(testDescription)"
        )
    }
}

extension DeviceVariant {
    /// Only pairs round the probabilities; plain and odd heads do not, and stay far below.
    var attentionTolerance: OperatorTolerance { operands == activations ? .attention : .attentionOfPairs }
}

/// Meets every edge of the tiles: 12, 6, 4 or 16 queries, 128, 32 or 8 keys, vectors of 4 to 16.
let oddAttention = [
    AttentionCase(queries: 1, keys: 1, heads: 1, headSize: 1),
    AttentionCase(queries: 13, keys: 7, heads: 3, headSize: 1),
    AttentionCase(batch: 2, queries: 1, keys: 77, heads: 2, headSize: 7),
    AttentionCase(queries: 13, keys: 13, heads: 3, headSize: 7, isCausal: true),
    AttentionCase(batch: 3, queries: 17, keys: 127, heads: 1, headSize: 7),
    AttentionCase(queries: 11, keys: 128, heads: 5, headSize: 40),
    AttentionCase(queries: 12, keys: 129, heads: 2, headSize: 40),
    AttentionCase(batch: 2, queries: 129, keys: 129, heads: 2, headSize: 40, isCausal: true),
    AttentionCase(queries: 33, keys: 31, heads: 1, headSize: 40),
    AttentionCase(queries: 5, keys: 3, heads: 1, headSize: 512),
    AttentionCase(queries: 3, keys: 5, heads: 2, headSize: 513),
]

/// Of SD 1.5 and 2.1 at 512x512 and of their text encoders and VAEs.
let realAttention = [
    AttentionCase(batch: 2, queries: 77, keys: 77, heads: 12, headSize: 64, isCausal: true),
    AttentionCase(batch: 2, queries: 1024, keys: 77, heads: 8, headSize: 80),
    AttentionCase(batch: 2, queries: 256, keys: 256, heads: 8, headSize: 160),
    AttentionCase(batch: 2, queries: 64, keys: 64, heads: 20, headSize: 64),
    AttentionCase(queries: 4096, keys: 77, heads: 8, headSize: 40),
    AttentionCase(queries: 1024, keys: 1024, heads: 1, headSize: 512),
]

/// Where only the forms for processors are quick enough on one.
let largeAttention = [
    AttentionCase(batch: 2, queries: 4096, keys: 4096, heads: 8, headSize: 40),
    AttentionCase(queries: 4096, keys: 4096, heads: 1, headSize: 512),
]

@Suite(.requiresDevice)
@DeviceActor
struct AttentionTests {
    @Test(arguments: DeviceVariant.all + DeviceVariant.shorterVectors, oddAttention)
    func awkwardShapes(_ variant: DeviceVariant, _ attention: AttentionCase) throws {
        try attention.check(variant)
    }

    @Test(arguments: [DeviceVariant(.cpu, .float32), .pairs, DeviceVariant(.gpu, .float32)], realAttention)
    func stableDiffusionShapes(_ variant: DeviceVariant, _ attention: AttentionCase) throws {
        try attention.check(variant)
    }

    @Test(arguments: largeAttention)
    func largeShapes(_ attention: AttentionCase) throws {
        try attention.check(DeviceVariant(testDeviceIsGPU ? .gpu : .cpu, .float32))
    }

    /// The autoencoder's head on the local memory of NVIDIA's and AMD's devices, and on too little for any tile.
    @Test(arguments: [(49_152, 4, 8), (65_536, 8, 8), (8192, 0, 0)])
    func littleLocalMemory(_ bytes: Int, _ queries: Int, _ keys: Int) throws {
        let variant = DeviceVariant(.gpu, .float32, localMemoryBytes: bytes)
        let tile = try variant.device().tuning.attentionTile(headSize: 512)
        #expect(tile?.queries ?? 0 == queries && tile?.keys ?? 0 == keys)
        try AttentionCase(queries: 21, keys: 21, heads: 1, headSize: 512).check(variant)
        try AttentionCase(queries: 9, keys: 77, heads: 2, headSize: 40, isCausal: true).check(variant)
    }

    /// Scores of ten thousand: only differences from the maximum may meet the exponential function.
    @Test(arguments: DeviceVariant.all, [false, true])
    func hugeScores(_ variant: DeviceVariant, _ isCausal: Bool) throws {
        try AttentionCase(queries: 45, keys: 45, heads: 2, headSize: 40, isCausal: isCausal, deviation: 40)
            .check(variant, tolerance: .attentionWithHugeScores)
    }

    /// Keys that are all the same give the mean of the values, also where a whole block of keys scores far below an earlier one.
    @Test(arguments: DeviceVariant.all)
    func earlyMaximum(_ variant: DeviceVariant) throws {
        let device = try variant.device()
        let keyCount = 300
        var keys = HostTensor([1, keyCount, 1], [Float](repeating: -100, count: keyCount))
        keys.values[0] = 100
        keys.values[1] = 100
        let values = HostTensor([1, keyCount, 1], (0..<keyCount).map { Float($0) })
        let y = try attention(
            queries: Columns(device.upload(HostTensor([1, 2, 1], [100, -1]), as: device.operandType)),
            keys: Columns(device.upload(keys, as: device.operandType)),
            values: Columns(device.upload(values, as: device.operandType)),
            heads: 1,
            headSize: 1
        )
        // The first query sees keys 0 and 1 only; the second all others.
        let others = values.rounded(to: variant.operands).values[2...].map { Double($0) }
        expectClose(
            try y.floats(),
            [0.5, others.reduce(0, +) / Double(others.count)],
            variant.attentionTolerance.bound(variant.operands)
        )
    }
}
