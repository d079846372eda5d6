// Gaussian noise against torch.randn of PyTorch 2.13 (Tests/Fixtures/torch-randn.json), bit for bit, and against the other generators that a
// seed can mean (Tests/Fixtures/seeds.json).

import JSON
@testable import StableDiffusion
import TestSupport
import Testing

@Suite struct NoiseTests {
    private func seed(_ value: JSONValue) throws -> Seed {
        let text = try #require(value["seed"]?.stringValue)
        if let signed = Int64(text) { return Seed(signed) }
        return Seed(try #require(UInt64(text)))
    }

    private func expect(_ values: [Float], match draw: JSONValue, _ name: String) {
        #expect(values.count == draw["count"]?.integerValue, "\(name)")
        #expect(
            values.prefix(4).map { Int(Int32(bitPattern: $0.bitPattern)) } == draw["first_bits"]?.integers,
            "\(name)"
        )
        #expect(
            values.suffix(4).map { Int(Int32(bitPattern: $0.bitPattern)) } == draw["last_bits"]?.integers,
            "\(name)"
        )
        let checksum = values.withUnsafeBytes { crc32($0) }
        #expect(Int(checksum) == draw["crc32"]?.integerValue, "\(name)")
    }

    @Test(arguments: [
        ("5", 1, "6"), ("0", 0, "0"), ("-1", 1, "0"), ("-3", 2, "-1"), ("18446744073709551615", 1, "0"),
        ("9223372036854775807", 1, "9223372036854775808"), ("-9223372036854775808", 1, "-9223372036854775807"),
    ])
    func seedsCountUp(_ text: String, _ count: Int, _ expected: String) throws {
        let signed = Int64(text).map { Seed($0) }
        let seed = try #require(signed ?? UInt64(text).map { Seed($0) })
        let next = seed.advanced(by: count)
        #expect(next.description == expected && next.bits == seed.bits &+ UInt64(count))
    }

    @Test func everySizeAndSeedMatchesBitForBit() throws {
        let draws = try #require(try Fixture.json("torch-randn.json")["draws"]?.arrayValue)
        #expect(draws.count > 400)
        for draw in draws {
            let seed = try seed(draw)
            let count = try #require(draw["count"]?.integerValue)
            var generator = TorchGenerator(seed: seed.bits)
            expect(generator.normals(count), match: draw, "\(count) numbers of seed \(seed)")
        }
    }

    @Test func drawingAgainContinuesWhereTheGeneratorStopped() throws {
        let sequence = try #require(try Fixture.json("torch-randn.json")["sequence"])
        var generator = TorchGenerator(seed: try seed(sequence).bits)
        for (index, draw) in try #require(sequence["draws"]?.arrayValue).enumerated() {
            expect(generator.normals(try #require(draw["count"]?.integerValue)), match: draw, "draw \(index)")
        }
    }

    @Test func latentsHaveTheReferenceValuesWithChannelsLast() throws {
        let latents = try #require(try Fixture.json("torch-randn.json")["latents"])
        let shape = try #require(latents["shape"]?.integers)
        var generator = NoiseGenerator(.torch, seed: try seed(latents))
        let values = generator.latents(channels: shape[0], height: shape[1], width: shape[2])
        #expect(values == latents["nhwc"]?.floats)
    }

    @Test func drawingNothingIsEmpty() {
        var generator = TorchGenerator(seed: 1)
        #expect(generator.normals(0).isEmpty)
        for source in NoiseSource.allCases {
            var generator = NoiseGenerator(source, seed: Seed(UInt64(1)))
            #expect(generator.latents(channels: 4, height: 0, width: 8).isEmpty)
        }
    }

    // MARK: Other generators

    /// The answers Random123's authors publish.
    @Test func philoxGivesThePublishedBlocks() throws {
        let answers = try #require(try Fixture.json("seeds.json")["philox"]?.arrayValue)
        #expect(answers.count == 3)
        for answer in answers {
            let (counter, key) = (answer["counter"]?.integers ?? [], answer["key"]?.integers ?? [])
            func pair(_ words: ArraySlice<Int>) -> UInt64 {
                words.reversed().reduce(0) { $0 << 32 | UInt64($1) }
            }
            let block = Philox(key: pair(key[...])).block(low: pair(counter[..<2]), high: pair(counter[2...]))
            #expect([block.0, block.1, block.2, block.3].map { Int($0) } == answer["block"]?.integers)
        }
    }

    /// The first picture's noise and the noise of a later step, for seeds of all 64 bits.
    @Test func otherGeneratorsMatchTheirReferences() throws {
        let draws = try #require(try Fixture.json("seeds.json")["draws"]?.arrayValue)
        #expect(draws.count == 54)
        for draw in draws {
            let source = try #require(draw["source"]?.stringValue.flatMap { NoiseSource(rawValue: $0) })
            let shape = try #require(draw["shape"]?.integers)
            let stride = try #require(draw["stride"]?.integerValue)
            let seed = try seed(draw)
            var generator = NoiseGenerator(source, seed: seed)
            for (call, expected) in try #require(draw["calls"]?.arrayValue).enumerated() {
                let values = generator.latents(channels: shape[0], height: shape[1], width: shape[2])
                let sampled = Swift.stride(from: 0, to: values.count, by: stride).map { values[$0] }
                let reference = expected.doubles
                try #require(sampled.count == reference.count)
                let error = zip(sampled, reference).map { abs(Double($0) - $1) }.max() ?? .infinity
                // NumPy's numbers are doubles, rounded; the others are computed in 32 bits.
                #expect(error <= (source == .numpy ? 2.5e-7 : 2e-6), "call \(call) of \(source), seed \(seed)")
            }
        }
    }

    /// Published numbers of TensorFlow for 24 values with seed 123, which several people saw as the second to fifth call of a process.
    @Test func tensorFlowCountsItsCalls() {
        var generator = TensorFlowGenerator(seed: Seed(UInt64(123)))
        let sums = (0..<5).map { _ in generator.normals(24).reduce(0.0) { $0 + Double($1) } }
        for (sum, expected) in zip(sums, [9.452374, -4.219632, 1.858085, 2.359888, -0.194225]) {
            #expect(abs(sum - expected) < 2e-5)
        }
    }

    @Test(
        arguments: [
            (
                UInt64(0), [-0.3991576, 2.104439, 0.1710722, 0.5465181], [0.3408865, -0.1329264, 1.385785, -0.4962317],
                -91.4712, 16114.590
            ),
            (
                42, [-0.2807751, -0.1377521, -0.6763296, 0.02458041], [-0.1762648, 0.7873046, 2.214573, 0.5757928],
                242.1195, 16371.866
            ),
            (
                1_234_567_890, [1.26495, -1.196747, -1.727687, 0.6673569],
                [-0.959857, 1.381918, -1.661533, -0.7631744], -92.5156,
                16366.879
            ),
        ] as [(UInt64, [Double], [Double], Double, Double)]
    )
    func tensorFlowNoiseOfAWholePicture(
        seed: UInt64,
        first: [Double],
        last: [Double],
        sum: Double,
        squares: Double
    ) {
        var generator = NoiseGenerator(.tensorflow, seed: Seed(seed))
        let values = generator.latents(channels: 4, height: 64, width: 64).map { Double($0) }
        #expect(zip(values.prefix(4), first).allSatisfy { abs($0 - $1) < 2e-6 })
        #expect(zip(values.suffix(4), last).allSatisfy { abs($0 - $1) < 2e-6 })
        #expect(abs(values.reduce(0, +) - sum) < 1e-3)
        #expect(abs(values.reduce(0) { $0 + $1 * $1 } - squares) < 1e-2)
    }

    @Test func tensorFlowSeedsAreModuloAPrime() {
        let prime = UInt64(1) << 31 - 1
        #expect(Seed(Int64(-1)).modulo(prime) == prime - 1)
        #expect(Seed(prime + 5).modulo(prime) == 5)
        #expect(Seed(Int64(-2_147_483_647)).modulo(prime) == 0)
        // -2⁶³ = -(2⁶² · 2) and 2⁶² ≡ 1.
        #expect(Seed(Int64.min).modulo(prime) == prime - 2)
        #expect(Seed(UInt64.max).modulo(prime) == UInt64.max % prime)
    }
}
