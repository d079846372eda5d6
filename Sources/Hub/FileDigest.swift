// The checksum of what has come so far.

internal import Crypto
internal import Foundation

/// A digest under way.
struct FileDigest {
    private enum Hash {
        case sha256(SHA256)
        case sha1(Insecure.SHA1)
    }

    private var hash: Hash

    /// A digest that is compared with `checksum`, of a file of `size` bytes.
    init(_ checksum: Checksum, size: Int) {
        switch checksum {
        case .sha256: hash = .sha256(SHA256())
        case .gitBlob:
            var sha1 = Insecure.SHA1()
            sha1.update(data: Data("blob \(size)\0".utf8))
            hash = .sha1(sha1)
        }
    }

    /// Takes in more of the file.
    mutating func update(_ bytes: UnsafeRawBufferPointer) {
        switch hash {
        case .sha256(var sha):
            sha.update(bufferPointer: bytes)
            hash = .sha256(sha)
        case .sha1(var sha):
            sha.update(bufferPointer: bytes)
            hash = .sha1(sha)
        }
    }

    /// Of all that came, in lower-case hexadecimal digits.
    var digits: String {
        let bytes: [UInt8] =
            switch hash {
            case .sha256(let sha): Array(sha.finalize())
            case .sha1(let sha): Array(sha.finalize())
            }
        return bytes.map { String(UInt16($0) + 256, radix: 16).dropFirst() }.joined()
    }
}
