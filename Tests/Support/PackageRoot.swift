// Where tests find the repository's own files.

/// The directory of Package.swift.
package let packageRoot: String = {
    // .../Tests/Support/PackageRoot.swift
    var parts = #filePath.split(separator: "/", omittingEmptySubsequences: false)
    parts.removeLast(3)
    return parts.joined(separator: "/")
}()

/// The demo model's folder.
package let demoModelPath = packageRoot + "/Models/demo"
