// The version of the software, as it appears in pictures, in the OpenAPI document and in the `Server` header.

/// Version of diffused, by semantic versioning.
public let softwareVersion = "0.1.0"
