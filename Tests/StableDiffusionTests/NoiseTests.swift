// Gaussian noise against torch.randn of PyTorch 2.13 (Tests/Fixtures/torch-randn.json), bit for bit.

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
        let values = NoiseSource.torch.latents(
            seed: try seed(latents),
            channels: shape[0],
            height: shape[1],
            width: shape[2]
        )
        #expect(values == latents["nhwc"]?.floats)
    }

    @Test func drawingNothingIsEmpty() {
        var generator = TorchGenerator(seed: 1)
        #expect(generator.normals(0).isEmpty)
    }
}
