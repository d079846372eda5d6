// Writes the picture of `diffused generate` where the person asked for it: whole or not at all into a file, straight into
// what is no file, such as a device or a pipe.

internal import Foundation

/// A place that output cannot be written to.
struct OutputError: Error, CustomStringConvertible {
    let description: String

    /// An error with a sentence of its own.
    init(_ description: String) {
        self.description = description
    }

    /// The sentence for what the system said.
    init(path: String, code: Int32) {
        description = "--output: cannot write \(path): \(String(cString: strerror(code)))"
    }
}

/// Writes a whole file.
///
/// A new or existing file gets its content by a rename, so that nobody finds half a picture. A rename would replace a
/// device, a pipe or a link by a file, so those are written into instead.
///
/// - Throws: `OutputError`.
func writeOutput(_ bytes: [UInt8], to path: String) throws(OutputError) {
    guard !path.isEmpty, !path.hasSuffix("/") else { throw OutputError(path: "\"\(path)\"", code: EISDIR) }
    let type = try? FileManager.default.attributesOfItem(atPath: path)[.type] as? FileAttributeType
    if let type, type != .typeRegular {
        return try write(bytes, to: path, flags: O_WRONLY | O_CREAT | O_TRUNC, naming: path)
    }
    let temporary = "\(path).\(getpid()).partial"
    do throws(OutputError) {
        try write(bytes, to: temporary, flags: O_WRONLY | O_CREAT | O_EXCL, naming: path)
        guard rename(temporary, path) == 0 else { throw OutputError(path: path, code: errno) }
    } catch {
        unlink(temporary)
        throw error
    }
}

private func write(_ bytes: [UInt8], to file: String, flags: Int32, naming path: String) throws(OutputError) {
    let descriptor = open(file, flags | O_CLOEXEC, 0o666)
    guard descriptor >= 0 else { throw OutputError(path: path, code: errno) }
    var done = 0
    while done < bytes.count {
        let count = bytes.withUnsafeBytes {
            Foundation.write(descriptor, $0.baseAddress?.advanced(by: done), $0.count - done)
        }
        if count < 0, errno == EINTR { continue }
        guard count >= 0 else {
            let code = errno
            close(descriptor)
            throw OutputError(path: path, code: code)
        }
        done += count
    }
    // Some file systems report a full disk only here.
    guard close(descriptor) == 0 else { throw OutputError(path: path, code: errno) }
}
