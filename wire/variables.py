"""The environment variables that a Repository may set for restic: credentials and settings of its backends.

The author of a Repository may not be the operator of the hosts. So the list has no variable that makes restic, a
backend's library, ssh or rclone run a program or read a file of the host. That excludes
GOOGLE_APPLICATION_CREDENTIALS, since its file may name another file and where to send it, and AWS_PROFILE, which
selects a part of a file. Source: restic's manual, chapter "Environment Variables", up to 0.19.
"""

ALLOWED = frozenset(
    {
        *(f"AWS_{name}" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")),
        *(f"AWS_{name}" for name in ("DEFAULT_REGION", "REGION")),
        *(f"RESTIC_AWS_ASSUME_ROLE_{name}" for name in ("ARN", "SESSION_NAME", "EXTERNAL_ID", "POLICY", "REGION")),
        "RESTIC_AWS_ASSUME_ROLE_STS_ENDPOINT",
        *(f"AZURE_{name}" for name in ("ACCOUNT_NAME", "ACCOUNT_KEY", "ACCOUNT_SAS", "ENDPOINT_SUFFIX")),
        *(f"AZURE_{name}" for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET")),
        *("B2_ACCOUNT_ID", "B2_ACCOUNT_KEY"),
        *("GOOGLE_PROJECT_ID", "GOOGLE_ACCESS_TOKEN"),
        *(f"OS_{name}" for name in ("AUTH_URL", "AUTH_TOKEN", "STORAGE_URL", "REGION_NAME", "TRUST_ID")),
        *(f"OS_{name}" for name in ("USERNAME", "USER_ID", "PASSWORD", "USER_DOMAIN_NAME", "USER_DOMAIN_ID")),
        *(f"OS_{name}" for name in ("TENANT_ID", "TENANT_NAME", "PROJECT_NAME")),
        *(f"OS_{name}" for name in ("PROJECT_DOMAIN_NAME", "PROJECT_DOMAIN_ID")),
        *(f"OS_APPLICATION_CREDENTIAL_{name}" for name in ("ID", "NAME", "SECRET")),
        *("ST_AUTH", "ST_USER", "ST_KEY", "SWIFT_DEFAULT_CONTAINER_POLICY"),
        *("RESTIC_REST_USERNAME", "RESTIC_REST_PASSWORD"),
        *("RESTIC_KEY_HINT", "RESTIC_COMPRESSION", "RESTIC_PACK_SIZE", "RESTIC_READ_CONCURRENCY"),
        "RCLONE_BWLIMIT",
    }
)
REFUSED = "is not passed to restic: allowed are its backends' own, such as AWS_ACCESS_KEY_ID"
"""The end of an error about a variable that is not allowed."""
