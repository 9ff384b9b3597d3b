"""The labels' database: schema, migrations, queue, classroom."""
