// `device.gemm: auto`: what is measured is kept and used again, and a file that is not ours costs a measurement, nothing else.

import Foundation
import TensorOps
import TestSupport
import Testing

@Suite(.requiresDevice)
@DeviceActor
struct GEMMSelectionTests {
    private let shapes = [
        LinearShape(rows: 8, inChannels: 16, outChannels: 8), LinearShape(rows: 4, inChannels: 64, outChannels: 16),
    ]

    /// The providers of the two classes after choosing with this file in the cache; what was written to it then.
    private func choose(_ file: Data?) throws -> (providers: [GEMMProvider], written: [String: [String]]) {
        let directory = try TemporaryDirectory()
        if let file { try directory.write([UInt8](file), to: "gemm.json") }
        let device = try DeviceVariant(.gpu, .float32).device()
        defer { device.gemmProvider = { _, _ in .builtin } }
        try device.chooseGEMM(cacheDirectory: directory.path, among: shapes)
        let providers = [device.gemmProvider(17, 8), device.gemmProvider(50, 16)]
        let data = try Data(contentsOf: URL(fileURLWithPath: directory.path + "/gemm.json"))
        return (providers, try JSONDecoder().decode([String: [String]].self, from: data))
    }

    @Test func keepsWhatItMeasured() throws {
        let first = try choose(nil)
        let kept = try #require(first.written.first)
        #expect(kept.value == first.providers.map(\.rawValue))
        // The other answer in the file shows that it is read.
        for other in [["clblast", "builtin"], ["builtin", "clblast"]] {
            let again = try choose(JSONEncoder().encode([kept.key: other, "another device": ["builtin"]]))
            #expect(again.providers.map(\.rawValue) == other)
            #expect(again.written.count == 2)
        }
    }

    @Test(arguments: [
        "", "{", "[1, 2]", "{\"gemm v1\": 7}", "{\"another device\": [\"builtin\", \"builtin\"]}", "\u{0}\u{1}\u{fffd}",
    ])
    func survivesAForeignFile(_ text: String) throws {
        let result = try choose(Data(text.utf8))
        #expect(result.written.values.contains(result.providers.map(\.rawValue)))
    }

    /// A list of another length and names of no implementation, under the right key; a file cut off; random bytes.
    @Test func survivesADamagedFile() throws {
        let good = try choose(nil).written
        let key = try #require(good.keys.first)
        let encoded = try JSONEncoder().encode(good)
        var generator = SplitMix64(state: 3)
        for damaged in [
            try JSONEncoder().encode([key: ["builtin"]]), try JSONEncoder().encode([key: ["fast", "builtin"]]),
            encoded.prefix(encoded.count - 3),
            Data((0..<500).map { _ in UInt8.random(in: 0...255, using: &generator) }),
        ] {
            let result = try choose(damaged)
            #expect(result.written[key] == result.providers.map(\.rawValue))
        }
    }
}
