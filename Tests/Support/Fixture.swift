// Reads Tests/Fixtures, whose files are made by scripts/make-fixtures.py.

import Foundation
package import JSON
import Testing

/// A file of reference numbers.
package enum Fixture {
    /// The directory of all fixtures.
    package static let directory = packageRoot + "/Tests/Fixtures"

    /// The bytes of a fixture, by its path below `Tests/Fixtures`.
    package static func bytes(_ path: String) throws -> [UInt8] {
        try [UInt8](Data(contentsOf: URL(fileURLWithPath: directory + "/" + path)))
    }

    /// A JSON fixture.
    package static func json(_ path: String) throws -> JSONValue {
        try JSONValue(parsing: bytes(path))
    }

    /// A fixture of little-endian 32-bit floats without a header.
    package static func floats(_ path: String) throws -> [Float] {
        let bytes = try bytes(path)
        try #require(bytes.count.isMultiple(of: 4), "\(path) is not a whole number of floats")
        return bytes.withUnsafeBytes { buffer in
            stride(from: 0, to: buffer.count, by: 4).map { offset in
                Float(bitPattern: UInt32(littleEndian: buffer.loadUnaligned(fromByteOffset: offset, as: UInt32.self)))
            }
        }
    }
}

extension JSONValue {
    /// The numbers of an array of numbers; empty when it is none.
    package var doubles: [Double] { arrayValue?.compactMap(\.doubleValue) ?? [] }

    /// The numbers of an array of numbers, rounded to floats.
    package var floats: [Float] { doubles.map { Float($0) } }

    /// The integers of an array of integers; empty when it is none.
    package var integers: [Int] { arrayValue?.compactMap(\.integerValue) ?? [] }
}
