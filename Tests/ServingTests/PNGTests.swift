// Pictures as files: exact pixels, text chunks other programs can read, and a store that never shows half a file.

import Foundation
import StableDiffusion
import TestSupport
import Testing

@testable import Serving

/// Takes a PNG file apart without libpng: chunks by type, every checksum checked.
private func chunks(of png: [UInt8]) throws -> [(type: String, data: [UInt8])] {
    try #require(Array(png.prefix(8)) == [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A])
    func number(_ index: Int) -> UInt32 { png[index..<index + 4].reduce(0) { $0 << 8 | UInt32($1) } }
    var result: [(String, [UInt8])] = []
    var index = 8
    while index < png.count {
        let length = Int(number(index))
        let body = Array(png[index + 4..<index + 8 + length])
        #expect(crc32(body) == number(index + 8 + length))
        result.append((String(decoding: body.prefix(4), as: UTF8.self), Array(body.dropFirst(4))))
        index += 12 + length
    }
    return result
}

private func noise(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8.random(in: 0...255) } }

private let model = ModelDescription(
    name: "sd15.safetensors",
    nativeSize: 512,
    precision: .float16,
    deviceName: "device"
)

private func request(_ prompt: String, negative: String = "", seed: Seed = Seed(Int64(-5))) -> GenerationRequest {
    GenerationRequest(
        prompt: prompt,
        negativePrompt: negative,
        width: 136,
        height: 72,
        steps: 20,
        guidanceScale: 7,
        seed: seed
    )
}

@Suite struct PNGTests {
    @Test(arguments: [(1, 1), (8, 8), (136, 72), (3, 257), (512, 512)])
    func roundTripIsExact(width: Int, height: Int) throws {
        // Noise does not compress, so this also meets the bound on the encoded size.
        let pixels = noise(width * height * 3)
        let png = try PNGEncoder.encode(pixels: pixels, width: width, height: height, text: ("parameters", "x"))
        let decoded = try DecodedPicture.rgb(png)
        #expect(decoded.width == width)
        #expect(decoded.height == height)
        #expect(decoded.pixels == pixels)
        #expect(try chunks(of: png).map(\.type).prefix(2) == ["IHDR", "tEXt"])
        #expect(try chunks(of: png).last?.type == "IEND")
    }

    @Test func wrongPixelCountIsRefused() {
        let error = #expect(throws: PNGError.self) { try PNGEncoder.encode(pixels: [1, 2], width: 1, height: 1) }
        #expect(error?.description == "2 bytes are not a picture of 1x1 RGB pixels")
    }

    @Test func checksum() {
        // The check value of CRC-32, as catalogues list it.
        #expect(crc32(Array("123456789".utf8)) == 0xCBF4_3926)
    }

    @Test(arguments: [
        ("plain", "tEXt", Array("parameters\0plain".utf8)),
        ("é ÿ", "tEXt", Array("parameters\0".utf8) + [0xE9, 0x20, 0xFF]),
        ("猫", "iTXt", Array("parameters\0\0\0\0\0猫".utf8)),
        ("tab\t", "iTXt", Array("parameters\0\0\0\0\0tab\t".utf8)),
        ("a\r\nb\rc\nd", "tEXt", Array("parameters\0a\nb\nc\nd".utf8)),
        ("a\0b", "iTXt", Array("parameters\0\0\0\0\0a\u{FFFD}b".utf8)),
        ("", "tEXt", Array("parameters\0".utf8)),
    ])
    func textChunks(text: String, type: String, data: [UInt8]) throws {
        let png = try PNGEncoder.encode(pixels: [1, 2, 3], width: 1, height: 1, text: ("parameters", text))
        let chunk = try chunks(of: png)[1]
        #expect(chunk.type == type)
        #expect(chunk.data == data)
    }

    @Test func parametersText() {
        #expect(
            ParametersText.text(for: request("a cat,\nsitting", negative: "dogs"), model: model) == """
                a cat,
                sitting
                Negative prompt: dogs
                Steps: 20, Sampler: DDIM, CFG scale: 7, Seed: -5, Size: 136x72, Model: sd15, RNG: CPU, \
                Version: diffused \(softwareVersion)
                """
        )
        var sampled = request("a")
        (sampled.sampler, sampled.schedule, sampled.eta, sampled.noise) = (.dpmpp2MSDE, .karras, 0.5, .cuda)
        sampled.spacing = .trailing
        #expect(
            ParametersText.text(for: sampled, model: model) == """
                a
                Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 7, Seed: -5, Size: 136x72, Model: sd15, RNG: NV, \
                Eta: 0.5, Timestep spacing: trailing, Version: diffused \(softwareVersion)
                """
        )
        let odd = ModelDescription(name: "a, b: c", nativeSize: 64, precision: .float32, deviceName: "d")
        let text = ParametersText.text(for: request("", seed: Seed(UInt64.max)), model: odd)
        #expect(text.hasPrefix("\nSteps: 20, "))
        #expect(text.contains("Seed: 18446744073709551615, "))
        #expect(text.contains("Model: \"a, b: c\", "))
    }

    /// Another program's PNG reader and inflate agree with ours.
    @Test func pythonReadsThePicture() throws {
        let directory = try TemporaryDirectory()
        let pixels = noise(16 * 8 * 3)
        let png = try PNGEncoder.encode(pixels: pixels, width: 16, height: 8, text: ("parameters", "猫\nSteps: 1"))
        try Data(png).write(to: URL(fileURLWithPath: directory.path + "/a.png"))
        try Data(pixels).write(to: URL(fileURLWithPath: directory.path + "/a.rgb"))
        let script = """
            import struct, sys, zlib
            png, rgb = open(sys.argv[1], "rb").read(), open(sys.argv[2], "rb").read()
            at, chunks = 8, []
            while at < len(png):
                size, = struct.unpack(">I", png[at:at + 4])
                body = png[at + 4:at + 8 + size]
                assert zlib.crc32(body) == struct.unpack(">I", png[at + 8 + size:at + 12 + size])[0]
                chunks.append((body[:4], body[4:]))
                at += 12 + size
            assert chunks[0][0] == b"IHDR" and chunks[0][1][:10] == struct.pack(">IIBB", 16, 8, 8, 2)
            assert chunks[1] == (b"iTXt", b"parameters\\0\\0\\0\\0\\0" + "猫\\nSteps: 1".encode())
            raw = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
            rows, previous = b"", bytes(48)
            for y in range(8):
                kind, line = raw[y * 49], bytearray(raw[y * 49 + 1:y * 49 + 49])
                for i in range(48):
                    a, b, c = (line[i - 3] if i > 2 else 0), previous[i], (previous[i - 3] if i > 2 else 0)
                    p = a + b - c
                    paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
                    line[i] = (line[i] + [0, a, b, (a + b) // 2, paeth][kind]) & 255
                rows, previous = rows + bytes(line), line
            assert rows == rgb
            """
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = ["python3", "-c", script, directory.path + "/a.png", directory.path + "/a.rgb"]
        try process.run()
        process.waitUntilExit()
        #expect(process.terminationStatus == 0)
    }
}

@Suite struct ImageStoreTests {
    @Test func savedPicturesAreThere() throws {
        let directory = try TemporaryDirectory()
        let store = try ImageStore(directory: directory.path + "/new/deep")
        let id = try store.save([1, 2, 3])
        #expect(try store.read(id) == [1, 2, 3])
        #expect(store.path(of: id) == "\(directory.path)/new/deep/\(id.uuidString.lowercased()).png")
        #expect(try store.read(UUID()) == nil)
        let names = try FileManager.default.contentsOfDirectory(atPath: store.directory)
        #expect(names == ["\(id.uuidString.lowercased()).png"])
    }

    @Test func unfinishedFilesAreSweptAtStart() throws {
        let directory = try TemporaryDirectory()
        let names = [".\(UUID().uuidString.lowercased()).png.partial", "other.txt", "a.png"]
        for name in names { _ = FileManager.default.createFile(atPath: "\(directory.path)/\(name)", contents: Data()) }
        _ = try ImageStore(directory: directory.path)
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory.path).sorted() == ["a.png", "other.txt"])
    }

    @Test func aFileIsNoDirectory() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path + "/file"
        _ = FileManager.default.createFile(atPath: path, contents: Data())
        let error = #expect(throws: ImageStoreError.self) { try ImageStore(directory: path) }
        #expect(error?.description == "cannot open \(path): Not a directory")
        let below = #expect(throws: ImageStoreError.self) { try ImageStore(directory: path + "/below") }
        #expect(below?.description == "cannot make the directory \(path)/below: Not a directory")
    }

    /// `/proc` refuses files even from root.
    @Test func unwritableDirectoryFailsAtStart() {
        let error = #expect(throws: ImageStoreError.self) { try ImageStore(directory: "/proc/self") }
        #expect(error?.description.hasPrefix("cannot create /proc/self/.") == true)
    }

    @Test func fullDiskIsRecognised() {
        #expect(ImageStoreError(path: "p", operation: "write", errno: ENOSPC).isDiskFull)
        #expect(ImageStoreError(path: "p", operation: "write", errno: EDQUOT).isDiskFull)
        #expect(!ImageStoreError(path: "p", operation: "write", errno: EACCES).isDiskFull)
    }

    @Test(.timeLimit(.minutes(1))) func aPipeIsNoPicture() throws {
        let directory = try TemporaryDirectory()
        let store = try ImageStore(directory: directory.path)
        let id = UUID()
        try #require(mkfifo(store.path(of: id), 0o644) == 0)
        #expect(try store.read(id) == nil)
    }

    @Test func aVanishedDirectoryFailsTheSave() throws {
        let directory = try TemporaryDirectory()
        let store = try ImageStore(directory: directory.path + "/pictures")
        try FileManager.default.removeItem(atPath: store.directory)
        #expect(throws: ImageStoreError.self) { try store.save([1]) }
    }
}
